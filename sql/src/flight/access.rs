//! Who may use the server: a token, shown as a bearer token or as the password of any user.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use tonic::Status;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

/// The header that tokens are in.
const HEADER: &str = "authorization";

/// Looks at what callers show.
pub(super) struct Access {
    token: Option<Vec<u8>>,
}

impl Access {
    /// Everyone may come if there is no token.
    pub(super) fn new(token: Option<&str>) -> Self {
        Access {
            token: token.map(|token| token.as_bytes().to_vec()),
        }
    }

    /// Refuses a call that does not show the token.
    pub(super) fn check(&self, headers: &MetadataMap) -> Result<(), Status> {
        let Some(token) = &self.token else { return Ok(()) };
        let shown = headers.get(HEADER).map(MetadataValue::as_bytes).and_then(secret);
        match shown {
            Some(shown) if equal(&shown, token) => Ok(()),
            Some(_) => Err(Status::unauthenticated(
                "error[wrong-token]: this is not the server's token",
            )),
            None => Err(Status::unauthenticated(
                "error[no-token]: the server wants a token\n  \
                 hint: send \"authorization: Bearer TOKEN\", or log in with any user and the token as the password",
            )),
        }
    }

    /// What a client that logged in shows from now on.
    pub(super) fn bearer(&self) -> Result<MetadataValue<Ascii>, Status> {
        let token = self.token.as_deref().unwrap_or(b"none");
        let value = [b"Bearer ", token].concat();
        MetadataValue::try_from(value).map_err(|_| Status::internal("the token fits into no header"))
    }
}

/// Where clients look for [`Access::bearer`].
pub(super) fn header() -> &'static str {
    HEADER
}

/// The token in `Bearer TOKEN` or `Basic base64(USER:TOKEN)`.
fn secret(header: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(header).ok()?;
    let (scheme, rest) = text.trim().split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let both = BASE64_STANDARD
        .decode(rest)
        .or_else(|_| BASE64_STANDARD_NO_PAD.decode(rest))
        .ok()?;
    let colon = both.iter().position(|byte| *byte == b':')?;
    Some(both[colon + 1..].to_vec())
}

/// Whether two byte strings are equal, in a time that does not depend on where they differ.
fn equal(shown: &[u8], token: &[u8]) -> bool {
    let lengths = u8::from(shown.len() != token.len());
    let byte = |at: usize| token[at % token.len().max(1)];
    let differs = (0..shown.len()).fold(lengths, |differs, at| differs | (shown[at] ^ byte(at)));
    std::hint::black_box(differs) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shows(header: &str) -> MetadataMap {
        let mut headers = MetadataMap::new();
        headers.insert(HEADER, header.parse().unwrap());
        headers
    }

    #[test]
    fn only_the_token_opens() {
        let access = Access::new(Some("open sesame"));
        let basic = |both: &str| format!("Basic {}", BASE64_STANDARD.encode(both));
        let good = [
            "Bearer open sesame",
            "bearer open sesame",
            &basic("ali:open sesame"),
            &basic(":open sesame"),
        ];
        for header in good {
            assert!(access.check(&shows(header)).is_ok(), "{header}");
        }
        let bad = [
            "Bearer open sesam",
            "Bearer open sesamee",
            "Bearer open sesameopen sesame",
            "Bearer ",
            "open sesame",
            "Digest open sesame",
            "Basic open sesame",
            &basic("open sesame"),
            &basic("open sesame:"),
        ];
        for header in bad {
            assert!(access.check(&shows(header)).is_err(), "{header}");
        }
        assert!(access.check(&MetadataMap::new()).is_err());
        assert!(Access::new(None).check(&MetadataMap::new()).is_ok());
        assert_eq!(access.bearer().unwrap().to_str().unwrap(), "Bearer open sesame");
    }
}
