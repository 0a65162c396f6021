//! Every command a person types: `cargo xtask test`, `cargo xtask bench`.

fn main() {}
