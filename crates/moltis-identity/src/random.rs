//! Random bytes from the operating system: the only source of randomness in Moltis.

/// Returns `N` random bytes, fit for keys and nonces.
///
/// # Panics
/// Where the operating system has no random generator that answers. There is nothing that such a
/// process could still do safely.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_draws_are_alike() {
        let draws: std::collections::HashSet<[u8; 16]> = (0..1000).map(|_| bytes()).collect();
        assert_eq!(draws.len(), 1000);
    }
}
