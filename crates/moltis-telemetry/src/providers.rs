//! Which variables mean that a key for a provider of models is set. Names only, never a value.

use moltis_proto::telemetry::{Provider, ProviderKind};

/// The variables that are looked for, each with its provider.
pub const API_KEY_VARIABLES: [(&str, &str); 8] = [
    ("ANTHROPIC_API_KEY", "anthropic"),
    ("OPENAI_API_KEY", "openai"),
    ("GEMINI_API_KEY", "gemini"),
    ("MISTRAL_API_KEY", "mistral"),
    ("OPENROUTER_API_KEY", "openrouter"),
    ("GROQ_API_KEY", "groq"),
    ("DEEPSEEK_API_KEY", "deepseek"),
    ("XAI_API_KEY", "xai"),
];

/// Returns the provider whose key stands in `variable`.
pub fn provider_of(variable: &str) -> Option<&'static str> {
    API_KEY_VARIABLES
        .iter()
        .find(|(name, _)| *name == variable)
        .map(|(_, provider)| *provider)
}

/// Returns a provider for each known variable among `set`, in the order of the list.
pub(crate) fn from_variables(set: &[String]) -> impl Iterator<Item = Provider> {
    API_KEY_VARIABLES
        .iter()
        .filter(|(variable, _)| set.iter().any(|name| name == variable))
        .map(|(variable, provider)| Provider {
            name: (*provider).to_owned(),
            kind: ProviderKind::ApiKey,
            models: Vec::new(),
            variable: Some((*variable).to_owned()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_variables_are_reported_once_each() {
        let set = ["PATH", "OPENAI_API_KEY", "OPENAI_API_KEY", "SECRET"].map(str::to_owned);
        let found: Vec<_> = from_variables(&set).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "openai");
        assert_eq!(provider_of("XAI_API_KEY"), Some("xai"));
        assert_eq!(provider_of("PATH"), None);
    }
}
