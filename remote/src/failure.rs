//! What went wrong over there, in the words of the house. Answers of services are not quoted: only their codes and
//! statuses, for an answer may repeat what was signed and by whom.

use std::error::Error as Source;

use object_store::client::{HttpError, HttpErrorKind};
use sluice_engine::{Error, Kind};

use crate::RemoteStore;

/// Codes of services for credentials they do not take.
const CREDENTIALS: [&str; 6] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "NotSignedUp",
    "InvalidToken",
    "ExpiredToken",
    "RequestTimeTooSkewed",
];

/// Codes of services for a bucket that is in another region than was signed for.
const REGIONS: [&str; 3] = [
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
];

const GO_ON: &str = "the same command goes on where this one stopped";

impl RemoteStore {
    /// A file there that is not what was put there.
    pub(crate) fn damaged(&self, path: &str, what: &str) -> Error {
        Error::data(
            "damaged-remote",
            format!("\"{path}\" in \"{}\" is damaged: {what}", self.name()),
        )
        .hint("remove its folder there and push again from a store that has it")
    }

    /// A failed request: `action` is a verb such as `read`.
    pub(crate) fn failure(&self, action: &str, path: &str, error: &object_store::Error) -> Error {
        let name = &self.name;
        let first: &(dyn Source + 'static) = error;
        let causes: Vec<&(dyn Source + 'static)> =
            std::iter::successors(Some(first), |cause| (*cause).source()).collect();
        let innermost = causes.last().map(ToString::to_string).unwrap_or_default();
        let code = causes.iter().find_map(|cause| service_code(&cause.to_string()));
        let code = code.as_deref();
        let denied = matches!(
            error,
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. }
        );
        if let Some(http) = causes.iter().find_map(|cause| cause.downcast_ref::<HttpError>()) {
            return self.unreachable(http, &innermost);
        }
        if code == Some("NoSuchBucket") {
            return Error::user("no-bucket", format!("the bucket of \"{name}\" is not there"))
                .hint("make it, or check AWS_ENDPOINT_URL and AWS_REGION");
        }
        if code.is_some_and(|code| REGIONS.contains(&code)) || innermost.contains("without LOCATION") {
            return Error::user("wrong-region", format!("the bucket of \"{name}\" is in another region"))
                .hint("set AWS_REGION to that of the bucket");
        }
        if denied || code.is_some_and(|code| code == "AccessDenied" || CREDENTIALS.contains(&code)) {
            let hint = match code {
                Some("AccessDenied") => "the key needs s3:ListBucket, s3:GetObject and s3:PutObject there",
                Some("ExpiredToken") => "get new credentials: AWS_SESSION_TOKEN has expired",
                Some("RequestTimeTooSkewed") => "set the clock of this machine",
                _ => "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
            };
            let code = code.map(|code| format!(": {code}")).unwrap_or_default();
            return Error::user("access-denied", format!("\"{name}\" denies access{code}")).hint(hint);
        }
        if let Some(io) = causes.iter().find_map(|cause| cause.downcast_ref::<std::io::Error>()) {
            let mut told = Error::io(action, std::path::Path::new(path), io);
            told.message = format!("cannot {action} \"{path}\" in \"{name}\": {io}");
            return told;
        }
        // The status without the body.
        let status = innermost.split(['<', '\n']).next().unwrap_or_default();
        let status = status.trim_end_matches([':', ' ']);
        let (status, hint) = match status.split_once("status code: ") {
            Some((_, "404 Not Found")) => (
                "it answers 404 Not Found".to_string(),
                "is AWS_ENDPOINT_URL that of an S3 service?",
            ),
            Some((_, status)) => (format!("it answers {status}"), GO_ON),
            None => (status.to_string(), GO_ON),
        };
        let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
        Error::new(
            Kind::Device,
            "remote",
            format!("cannot {action} \"{path}\" in \"{name}\": {status}{code}"),
        )
        .hint(hint)
    }

    fn unreachable(&self, error: &HttpError, innermost: &str) -> Error {
        let what = match error.kind() {
            HttpErrorKind::Timeout => "no answer in time",
            _ => innermost,
        };
        let at = match &self.endpoint {
            Some(endpoint) => format!(" at \"{endpoint}\""),
            None => String::new(),
        };
        Error::device(
            "remote-unreachable",
            format!("cannot reach \"{}\"{at}: {what}", self.name),
        )
        .hint(format!("check the network and AWS_ENDPOINT_URL; {GO_ON}"))
    }
}

/// `<Code>NoSuchBucket</Code>` in an answer.
fn service_code(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let plain = !code.is_empty() && code.len() < 64 && code.chars().all(|c| c.is_ascii_alphanumeric());
    plain.then(|| code.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;

    #[test]
    fn codes_are_read_and_nothing_else() {
        let answer = "Server returned non-2xx status code: 403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code>\
            <AWSAccessKeyId>AKIDHUSH</AWSAccessKeyId></Error>";
        assert_eq!(service_code(answer).as_deref(), Some("SignatureDoesNotMatch"));
        assert_eq!(service_code("<Code>no code</Code>"), None);
        let remote = RemoteStore::open("memory://", &Options::default()).unwrap();
        for wrap in [
            |source| object_store::Error::Generic { store: "S3", source },
            |source| object_store::Error::PermissionDenied {
                path: String::new(),
                source,
            },
        ] {
            let error = remote.failure("read", "keys/a.json", &wrap(answer.into()));
            assert_eq!(error.code, "access-denied");
            assert!(!error.to_string().contains("AKIDHUSH"), "{error}");
        }
        let other = answer
            .replace("SignatureDoesNotMatch", "Odd")
            .replace("403 Forbidden", "400 Bad Request");
        let error = remote.failure(
            "read",
            "keys/a.json",
            &object_store::Error::Generic {
                store: "S3",
                source: other.into(),
            },
        );
        let wanted = "cannot read \"keys/a.json\" in \"memory://\": it answers 400 Bad Request (Odd)";
        assert_eq!(error.message, wanted);
    }
}
