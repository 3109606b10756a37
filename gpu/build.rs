//! Compiles the kernels of `kernels/` to PTX, which every GPU from compute capability 8.0 on turns to its own code.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    for variable in ["CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let home = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let home = home.filter(|home| !home.is_empty()).map(PathBuf::from).next();
    let nvcc = home.map_or_else(|| PathBuf::from("nvcc"), |home| home.join("bin/nvcc"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.ptx");
    let status = Command::new(&nvcc)
        .args(["--ptx", "-arch=compute_80", "-std=c++17", "-O3", "-o"])
        .arg(&out)
        .arg("kernels/all.cu")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} does not compile kernels/all.cu: {status}", nvcc.display()),
        Err(error) => panic!(
            "{} does not start: {error}; set CUDA_HOME to the toolkit",
            nvcc.display()
        ),
    }
}
