//! Builds the few lines of C that stand between a simulated world and the system's randomness.

fn main() {
    println!("cargo:rerun-if-changed=src/simulate/entropy.c");
    #[cfg(feature = "simulate")]
    entropy();
}

#[cfg(feature = "simulate")]
fn entropy() {
    if std::env::var_os("CARGO_CFG_TARGET_OS").is_none_or(|system| system != "linux") {
        return;
    }
    cc::Build::new()
        .file("src/simulate/entropy.c")
        .warnings_into_errors(true)
        .cargo_metadata(false)
        .compile("entropy");
    let out = std::env::var_os("OUT_DIR").unwrap_or_default();
    let out = std::path::Path::new(&out).display();
    println!("cargo:rustc-link-search=native={out}");
    println!("cargo:rustc-link-lib=static:+whole-archive=entropy");
    // The getrandom crate looks its function up by name when the program runs.
    println!("cargo:rustc-link-arg=-Wl,--export-dynamic-symbol=getrandom");
}
