//! Lets `node` and the tests find libtorch at run time without any variable
//! set: writes the folder of the libtorch that torch-sys links against into
//! them as their run path. Where that is comes from the same variables that
//! torch-sys reads; `make libtorch` gives them to cargo.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_LIB");
    // Without the feature nothing of libtorch may be named in the executable.
    if env::var_os("CARGO_FEATURE_TORCH").is_none() || env::var_os("CARGO_CFG_UNIX").is_none() {
        return;
    }
    let prefix = env::var_os("LIBTORCH_LIB").or_else(|| env::var_os("LIBTORCH"));
    if let Some(prefix) = prefix {
        let folder = Path::new(&prefix).join("lib");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
}
