#![no_main]
//! See `weft_proxy::fuzz::chunks`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_proxy::fuzz::chunks(data));
