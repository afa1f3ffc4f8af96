//! What a stranger says first: the head of a request, read by hyper and by `/ws` as the gateway has
//! them read, the offers of subprotocols in it, and the frames of a WebSocket behind it. Whoever is let
//! through has asked as RFC 6455 says, and is no browser.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moltis_fuzz::Input;
use moltis_gateway::http::fuzzing::speak;
use moltis_proto::Subprotocol;

/// Returns the head of the first request, in lower case, line by line.
fn first_head(bytes: &[u8]) -> Vec<String> {
    // Byte for byte, as in Latin-1: a header may hold what is no UTF-8.
    let text: String = bytes
        .iter()
        .map(|byte| char::from(byte.to_ascii_lowercase()))
        .collect();
    let text = text.trim_start_matches(['\r', '\n']);
    let lines = text
        .split('\n')
        .map(|line| line.trim_end_matches('\r').to_owned());
    lines.take_while(|line| !line.is_empty()).collect()
}

/// Checks by another reading of the head that its sender may be a node.
fn check_asked(head: &[String], answer: &str) {
    let values = |name: &str| -> Vec<&str> {
        let fields = head.iter().skip(1).filter_map(|line| line.split_once(':'));
        let named = fields.filter(|(found, _)| *found == name);
        named
            .map(|(_, value)| value.trim_matches([' ', '\t']))
            .collect()
    };
    let words = |name: &str| -> Vec<String> {
        let values = values(name);
        let words = values.iter().flat_map(|value| value.split(','));
        words.map(|word| word.trim().to_owned()).collect()
    };
    let line = head.first().expect("there is a request");
    assert!(
        line.starts_with("get ") && line.ends_with(" http/1.1"),
        "{line:?}"
    );
    for name in ["origin", "cookie", "content-length", "transfer-encoding"] {
        assert_eq!(values(name), Vec::<&str>::new(), "{name}");
    }
    assert!(words("connection").contains(&"upgrade".to_owned()));
    assert!(words("upgrade").contains(&"websocket".to_owned()));
    assert_eq!(values("sec-websocket-version").first(), Some(&"13"));
    assert_eq!(values("sec-websocket-key").len(), 1);
    let key = values("sec-websocket-key")[0];
    let letters = key
        .strip_suffix("==")
        .expect("16 bytes end in two paddings");
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || c == '+' || c == '/';
    assert!(
        letters.len() == 22 && letters.chars().all(is_base64),
        "{key:?}"
    );
    let offers = words("sec-websocket-protocol");
    assert!(offers.len() <= 8);
    let chosen = answer
        .lines()
        .find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
    let chosen = chosen.expect("a subprotocol is chosen");
    // Names are compared in their own case; a head in lower case can only tell that one was offered.
    assert!(Subprotocol::from_name(chosen).is_some());
    assert!(
        offers.contains(&chosen.to_owned()),
        "{chosen} was not offered"
    );
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let at_a_time = match input.byte() {
        0 => usize::MAX,
        length => usize::from(length),
    };
    let said = input.rest();
    let spoken = speak(said, at_a_time);
    let answer = String::from_utf8_lossy(&spoken.answer);
    let status = answer
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    match status {
        Some("101") => check_asked(&first_head(said), &answer),
        Some(status) => {
            assert!(
                ["400", "403", "414", "426", "431"].contains(&status),
                "{answer}"
            );
        }
        None => assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.0 "),
            "{answer}"
        ),
    }
    assert!(spoken.frames == 0 || answer.contains(" 101 "));
});
