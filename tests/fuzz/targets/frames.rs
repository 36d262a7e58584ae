#![no_main]
//! See `weft_proxy::fuzz::frames`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_proxy::fuzz::frames(data));
