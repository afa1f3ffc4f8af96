//! A reader of `OpenMetrics` text that takes nothing amiss: what a scraper may refuse, it refuses.

use std::collections::{BTreeMap, BTreeSet};

/// What was scraped: each sample by its name and labels, as they stand in the text.
#[derive(Debug)]
pub(crate) struct Exposition {
    samples: BTreeMap<String, f64>,
    pub(crate) families: BTreeSet<String>,
}

/// What stands above the samples of one name.
#[derive(Debug, Default)]
struct Family {
    name: String,
    kind: String,
    unit: Option<String>,
    has_help: bool,
}

impl Exposition {
    /// Reads a scrape, or says which line is wrong and why.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let mut read = Self {
            samples: BTreeMap::new(),
            families: BTreeSet::new(),
        };
        let body = text
            .strip_suffix("# EOF\n")
            .ok_or("the text does not end with `# EOF`")?;
        let mut family = Family::default();
        for line in body.lines() {
            let told = match line.strip_prefix("# ") {
                Some(comment) => read.describe(&mut family, comment),
                None => read.sample(&family, line),
            };
            told.map_err(|why| format!("{why}: {line}"))?;
        }
        read.check_histograms()?;
        Ok(read)
    }

    /// Returns the value of a sample, which has to be there.
    pub(crate) fn value(&self, series: &str) -> f64 {
        let value = self.samples.get(series);
        *value.unwrap_or_else(|| panic!("no `{series}` in {:#?}", self.samples))
    }

    /// Returns the sum of all samples of a name whose labels hold this.
    pub(crate) fn sum(&self, name: &str, label: &str) -> f64 {
        let of_name = self.samples.iter().filter(|(series, _)| {
            series
                .strip_prefix(name)
                .is_some_and(|labels| labels.starts_with('{') && labels.contains(label))
        });
        of_name.map(|(_, value)| value).sum()
    }

    fn describe(&mut self, family: &mut Family, comment: &str) -> Result<(), String> {
        let mut words = comment.splitn(3, ' ');
        let (what, name) = (words.next().unwrap(), words.next().unwrap_or_default());
        let rest = words.next().unwrap_or_default();
        if family.name != name {
            if !self.families.insert(name.to_owned()) {
                return Err("the family stands there twice".to_owned());
            }
            let sound = |c: char| c.is_ascii_lowercase() || c == '_';
            if !name.starts_with("moltis_") || !name.chars().all(sound) {
                return Err("not a name of ours".to_owned());
            }
            *family = Family {
                name: name.to_owned(),
                ..Family::default()
            };
        }
        match what {
            "HELP" if rest.len() > 10 => family.has_help = true,
            "TYPE" => rest.clone_into(&mut family.kind),
            "UNIT" if name.ends_with(&format!("_{rest}")) => family.unit = Some(rest.to_owned()),
            _ => return Err("no HELP, TYPE or UNIT as it has to be".to_owned()),
        }
        Ok(())
    }

    fn sample(&mut self, family: &Family, line: &str) -> Result<(), String> {
        let (series, value) = line.rsplit_once(' ').ok_or("no value")?;
        let name = series.split('{').next().unwrap();
        let suffix = name.strip_prefix(&family.name).ok_or("another family's")?;
        let suffixes: &[&str] = match family.kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_count", "_sum"],
            "info" => &["_info"],
            _ => return Err(format!("of no known type `{}`", family.kind)),
        };
        if !family.has_help || !suffixes.contains(&suffix) {
            return Err("without HELP, or with a suffix that its type does not have".to_owned());
        }
        let has_unit_word = ["_seconds", "_bytes"]
            .iter()
            .any(|u| family.name.ends_with(u));
        if has_unit_word != family.unit.is_some() {
            return Err("unit and name do not agree".to_owned());
        }
        check_labels(series.strip_prefix(name).unwrap())?;
        let value: f64 = value.parse().map_err(|_| "the value is no number")?;
        if !value.is_finite() || value < 0.0 {
            return Err("a value that none of ours can have".to_owned());
        }
        match self.samples.insert(series.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err("the series stands there twice".to_owned()),
        }
    }

    /// Buckets grow, and the last one is all there is.
    fn check_histograms(&self) -> Result<(), String> {
        let mut last: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for (series, value) in &self.samples {
            let Some((name, labels)) = series.split_once("_bucket{") else {
                continue;
            };
            let at = labels.find("le=\"").ok_or("a bucket without a bound")?;
            let (bound, rest) = labels[at + 4..].split_once('"').unwrap();
            let bound = match bound {
                "+Inf" => f64::INFINITY,
                bound => bound.parse().map_err(|_| "a bound that is no number")?,
            };
            let others = format!("{}{}", &labels[..at], rest.trim_start_matches(','));
            let others = others.trim_end_matches(['}', ',']).to_owned();
            let key = if others.is_empty() {
                format!("{name}_count")
            } else {
                format!("{name}_count{{{others}}}")
            };
            last.entry(key).or_default().push((bound, *value));
        }
        for (count, mut buckets) in last {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            let grow = buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1);
            let (bound, all) = buckets.last().copied().unwrap();
            if !grow || bound.is_finite() || self.value(&count).total_cmp(&all).is_ne() {
                return Err(format!("the buckets of {count} do not add up: {buckets:?}"));
            }
        }
        Ok(())
    }
}

/// Labels are names and quoted values; none of ours holds what needs an escape.
fn check_labels(labels: &str) -> Result<(), String> {
    if labels.is_empty() {
        return Ok(());
    }
    let inner = labels.strip_prefix('{').and_then(|l| l.strip_suffix('}'));
    let inner = inner.ok_or("labels without braces")?;
    for label in inner.split(',') {
        let (name, value) = label.split_once('=').ok_or("a label without a value")?;
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
        let value = value.ok_or("a value without quotes")?;
        let known = [
            "disk", "le", "method", "outcome", "queue", "reason", "route", "state",
        ];
        if !(known.contains(&name) || ["status", "version"].contains(&name))
            || value.contains(['"', '\\', '\n'])
        {
            return Err("a label that is none of ours".to_owned());
        }
    }
    Ok(())
}
