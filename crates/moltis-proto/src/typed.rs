//! What a person types to join a machine, as both ends print it. Not a word of the wire; it stands
//! here because neither end may import the other.

/// The command that joins a machine, up to its flags; `--host <url>` follows.
///
/// In this release a node stays in its terminal, and the command says so or it is refused. When a
/// service keeps a node running, this is the one place to change.
pub const NODE_ADD: &str = "moltis node add --foreground";
