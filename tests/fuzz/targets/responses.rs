#![no_main]
//! See `weft_proxy::fuzz::responses`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_proxy::fuzz::responses(data));
