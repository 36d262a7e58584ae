#![no_main]
//! See `weft_proxy::fuzz::head`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_proxy::fuzz::head(data));
