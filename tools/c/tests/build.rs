// SPDX-License-Identifier: MIT
//! Compiles kevq.h with the functions that `consumer.rs` calls, and has ring-tests take
//! that consumer.

fn main() {
    let headers = ["kevq.h", "../../rust/include/uapi"];
    println!("cargo::rustc-cfg=kevq");
    println!("cargo::rerun-if-changed=tests/shim.c");
    for header in headers {
        println!("cargo::rerun-if-changed={header}");
    }
    cc::Build::new()
        .file("tests/shim.c")
        .includes([".", "../../rust/include/uapi"])
        .std("c11")
        .opt_level(2)
        .warnings(true)
        .extra_warnings(true)
        .warnings_into_errors(true)
        // A test that panics in a callback unwinds through the C code.
        .flag("-fexceptions")
        .flag("-fsanitize=undefined")
        .flag("-fsanitize-undefined-trap-on-error")
        .compile("kevq");
}
