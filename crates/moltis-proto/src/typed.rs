//! What a person types to join a machine, as both ends print it. Not a word of the wire; it stands
//! here because neither end may import the other.

/// The command that joins a machine, up to its flags; `--host <url>` follows.
pub const NODE_ADD: &str = "moltis node add";
