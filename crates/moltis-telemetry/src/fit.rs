//! A sample fits its bound on the wire: lists are cut from their ends, the longest first.

use moltis_proto::limits::TELEMETRY_BYTES_MAX;
use moltis_proto::telemetry::Sample;

/// Room for the message around the sample.
const ENVELOPE_BYTES: usize = 64;

/// Cuts lists until the sample fits in either codec (JSON is the longer one), and says so.
pub(crate) fn cut(sample: &mut Sample) {
    // Each round takes a tenth of the longest list, so there are few of them.
    while json_bytes(sample) > TELEMETRY_BYTES_MAX - ENVELOPE_BYTES {
        sample.cut = true;
        if !shorten_longest(sample) {
            return;
        }
    }
}

fn json_bytes(sample: &Sample) -> usize {
    serde_json::to_vec(sample).map_or(usize::MAX, |bytes| bytes.len())
}

/// Takes a tenth of the longest list, at least one entry; returns false when all are empty.
fn shorten_longest(sample: &mut Sample) -> bool {
    let providers_len = sample.providers.len();
    let models = sample
        .providers
        .iter_mut()
        .map(|provider| &mut provider.models)
        .max_by_key(|models| models.len());
    let models_len = models.as_ref().map_or(0, |models| models.len());
    let longest = models_len
        .max(sample.gpus.len())
        .max(sample.runtimes.len())
        .max(providers_len);
    if longest == 0 {
        return false;
    }
    let kept = (longest * 9 / 10).min(longest - 1);
    if let Some(models) = models
        && models.len() == longest
    {
        models.truncate(kept);
    } else if sample.gpus.len() == longest {
        sample.gpus.truncate(kept);
    } else if sample.runtimes.len() == longest {
        sample.runtimes.truncate(kept);
    } else {
        sample.providers.truncate(kept);
    }
    true
}

#[cfg(test)]
mod tests {
    use moltis_proto::Codec;
    use moltis_proto::message::ToGateway;
    use moltis_proto::telemetry::{Gpu, Provider, ProviderKind, Runtime};

    use super::*;

    fn check_fits(sample: &Sample) {
        for codec in [Codec::Postcard, Codec::Json] {
            let bytes = codec
                .encode(&ToGateway::Telemetry(Box::new(sample.clone())))
                .unwrap();
            assert!(bytes.len() <= TELEMETRY_BYTES_MAX, "{} bytes", bytes.len());
        }
    }

    #[test]
    fn a_thousand_models_are_cut_and_it_says_so() {
        let mut sample = Sample {
            providers: vec![Provider {
                name: "ollama".to_owned(),
                kind: ProviderKind::Ollama,
                models: (0..1000)
                    .map(|n| format!("{n}{}", "é".repeat(100)))
                    .collect(),
                variable: None,
            }],
            ..Sample::default()
        };
        cut(&mut sample);
        assert!(sample.cut);
        assert!(
            sample.providers[0].models.len() > 50,
            "most of the room is used"
        );
        assert!(
            sample.providers[0].models[0].starts_with('0'),
            "the first ones are kept"
        );
        check_fits(&sample);
    }

    #[test]
    fn every_list_can_be_cut() {
        let long = "x".repeat(128);
        let mut sample = Sample {
            gpus: vec![
                Gpu {
                    name: long.clone(),
                    memory_total_bytes: u64::MAX,
                    memory_used_bytes: u64::MAX,
                };
                500
            ],
            runtimes: vec![
                Runtime {
                    name: long.clone(),
                    version: long.clone(),
                };
                500
            ],
            providers: vec![
                Provider {
                    name: long.clone(),
                    kind: ProviderKind::ApiKey,
                    models: vec![long.clone(); 3],
                    variable: Some(long),
                };
                500
            ],
            ..Sample::default()
        };
        cut(&mut sample);
        check_fits(&sample);
    }

    #[test]
    fn a_sample_that_fits_is_left_alone() {
        let mut sample = Sample::default();
        cut(&mut sample);
        assert_eq!(sample, Sample::default());
    }
}
