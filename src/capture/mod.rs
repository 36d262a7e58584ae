//! Transparent capture: the rules that lead an application's traffic through the sidecar.
