//! Whole numbers in requests. JSON has one kind of number, and JSON Schema calls `15.0` an integer
//! like `15`; some writers of JSON know no other way to write it.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserializer;
use serde::de::{self, Unexpected, Visitor};

/// Reads a whole number, however it is written.
///
/// # Errors
/// It has a fraction, or does not fit.
pub(super) fn whole<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    deserializer.deserialize_u64(Whole(PhantomData))
}

/// The same, or null.
///
/// # Errors
/// As [`whole`].
pub(super) fn whole_or_null<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    deserializer.deserialize_option(WholeOrNull(PhantomData))
}

struct Whole<T>(PhantomData<T>);

impl<T: TryFrom<u64>> Visitor<'_> for Whole<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::any::type_name::<T>())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        T::try_from(number).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        /// Up to here a float holds every whole number: 2^53.
        const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
        if number.fract() == 0.0 && (0.0..=EXACT_MAX).contains(&number) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is whole, and in bounds"
            )]
            let whole = number as u64;
            return self.visit_u64(whole);
        }
        Err(E::invalid_type(Unexpected::Float(number), &self))
    }
}

struct WholeOrNull<T>(PhantomData<T>);

impl<'de, T: TryFrom<u64>> Visitor<'de> for WholeOrNull<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Whole::<T>(PhantomData).expecting(f)
    }

    fn visit_none<E: de::Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, some: D) -> Result<Option<T>, D::Error> {
        whole(some).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use crate::api::runs::{Cancel, Resize};

    fn cols(text: &str) -> Result<u16, String> {
        let body = format!("{{\"cols\":{text},\"rows\":24}}");
        let read = serde_json::from_str::<Resize>(&body);
        read.map(|size| size.cols)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_whole_number_is_read_however_it_is_written() {
        for text in ["80", "80.0", "8e1", "0.8e2"] {
            assert_eq!(cols(text), Ok(80), "{text}");
        }
        for (text, words) in [
            ("80.5", "invalid type: floating point `80.5`, expected u16"),
            ("-1", "invalid value: integer `-1`, expected u16"),
            ("-1.0", "invalid type: floating point `-1.0`, expected u16"),
            ("65536", "invalid value: integer `65536`, expected u16"),
            ("1e300", "expected u16"),
            ("\"80\"", "invalid type: string \"80\", expected u16"),
            ("null", "invalid type: null, expected u16"),
        ] {
            let error = cols(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn what_may_be_left_out_may_be_null() {
        for (body, seconds) in [
            ("{}", None),
            (r#"{"grace_seconds":null}"#, None),
            (r#"{"grace_seconds":3.0}"#, Some(3)),
        ] {
            let read: Cancel = serde_json::from_str(body).unwrap();
            assert_eq!(read.grace_seconds, seconds, "{body}");
        }
    }
}
