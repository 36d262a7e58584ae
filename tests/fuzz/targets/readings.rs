#![no_main]
//! See `weft_proxy::fuzz::path_readings`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_proxy::fuzz::path_readings(data));
