//! The moltis binary.

fn main() {}
