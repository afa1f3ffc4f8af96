//! Programs that drive Moltis from outside. `xtask` builds and starts them; nobody imports them.

fn main() {}
