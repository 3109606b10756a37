//! The binary is built and starts. Having this test also makes `cargo test --workspace` build the binary, which the
//! end-to-end tests of the crate `sluice-tests` run.

use std::process::Command;

#[test]
fn the_binary_says_its_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .arg("--version")
        .output()
        .expect("the binary starts");
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        concat!("sluice ", env!("CARGO_PKG_VERSION"))
    );
}
