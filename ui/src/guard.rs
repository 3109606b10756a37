//! Who may ask: whoever shows the token, from this page, by an address that is this machine's.
//!
//! | check | against |
//! |---|---|
//! | the host is a number, or `localhost` | names of others that lead here (DNS rebinding) |
//! | the origin is this server's; the browser says that the request is the page's own | other pages |
//! | the token, as a cookie, a bearer token, or once in the address | other programs and users of the machine |

use std::net::{IpAddr, SocketAddr};

use axum::http::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri};
use sluice_engine::Error;

use crate::answer::Refused;

/// Where browsers tell whose page asks.
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Looks at what callers show.
pub(crate) struct Guard {
    token: String,
    /// The cookie's name: cookies are shared between the ports of a machine.
    cookie: String,
    /// Whether only this machine can connect.
    loopback: bool,
}

/// How the token was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// In a header.
    Header,
    /// In the address: a browser that comes for the first time.
    Address,
}

impl Guard {
    pub(crate) fn new(token: &str, address: SocketAddr) -> Self {
        Guard {
            token: token.to_string(),
            cookie: format!("sluice_{}", address.port()),
            loopback: address.ip().is_loopback(),
        }
    }

    /// Refuses a request that is not from the page, or not from someone who knows the token.
    pub(crate) fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Shown, Refused> {
        let host = one(headers, &HOST).filter(|host| self.is_ours(host)).ok_or_else(|| {
            let error = Error::user("wrong-host", "this server is not known by that name");
            forbidden(error.hint("open the address that \"sluice ui\" printed"))
        })?;
        let origin = match headers.contains_key(ORIGIN) {
            true => Some(one(headers, &ORIGIN).unwrap_or_default()),
            false => None,
        };
        if origin.is_some_and(|origin| origin != format!("http://{host}")) {
            return Err(forbidden(Error::user(
                "wrong-origin",
                "another page may not ask this server",
            )));
        }
        let bearer = one(headers, &AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        let cookie = cookies(headers).find(|(name, _)| *name == self.cookie);
        let in_address = match uri.path() {
            "/" => in_query(uri),
            _ => None,
        };
        let fits = |shown: Option<&str>| shown.is_some_and(|shown| equal(shown.as_bytes(), self.token.as_bytes()));
        let shown = if fits(in_address.as_deref()) {
            Shown::Address
        } else if fits(bearer) || fits(cookie.map(|(_, value)| value)) {
            Shown::Header
        } else {
            let error = match in_address.is_some() || bearer.is_some() || cookie.is_some() {
                true => Error::user("wrong-token", "this is not the server's token"),
                false => Error::user("no-token", "the server wants a token"),
            };
            return Err(Refused::new(
                StatusCode::UNAUTHORIZED,
                error.hint("open the address that \"sluice ui\" printed; it changes with every start"),
            ));
        };
        // Following the printed address from somewhere else is fine: only who knows the token can make it.
        let site = headers
            .contains_key(SITE)
            .then(|| one(headers, &SITE).unwrap_or_default());
        let own = |site: &str| matches!(site, "same-origin" | "none");
        if shown == Shown::Header && !site.is_none_or(own) {
            return Err(forbidden(Error::user(
                "other-site",
                "another page may not ask this server",
            )));
        }
        // What a form of another page could send is not enough: the page's own requests have an origin.
        if method == Method::POST && origin.is_none() && !fits(bearer) {
            return Err(forbidden(Error::user(
                "no-origin",
                "the request does not say which page it is from",
            )));
        }
        Ok(shown)
    }

    /// What lets a browser in from now on.
    pub(crate) fn set_cookie(&self) -> String {
        format!("{}={}; Path=/; HttpOnly; SameSite=Strict", self.cookie, self.token)
    }

    /// Whether a host is an address of this machine, whatever the port: it may be forwarded.
    fn is_ours(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
            None => host.split_once(':').map_or(host, |(name, _)| name),
        };
        match name.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback() || !self.loopback,
            Err(_) => name.eq_ignore_ascii_case("localhost"),
        }
    }
}

fn forbidden(error: Error) -> Refused {
    Refused::new(StatusCode::FORBIDDEN, error)
}

/// A header that is there once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    match values.next() {
        Some(_) => None,
        None => first.to_str().ok(),
    }
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
}

fn in_query(uri: &Uri) -> Option<String> {
    let pairs = url::form_urlencoded::parse(uri.query()?.as_bytes());
    pairs
        .into_iter()
        .find(|(name, _)| name == "token")
        .map(|(_, value)| value.into_owned())
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

    const TOKEN: &str = "0123456789abcdef";

    /// The status that a request gets; 200 if it may ask.
    fn ask(method: Method, path: &str, headers: &[(&str, &str)]) -> u16 {
        let guard = Guard::new(TOKEN, "127.0.0.1:8080".parse().unwrap());
        status(&guard, method, path, headers)
    }

    fn status(guard: &Guard, method: Method, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let checked = guard.check(&method, &path.parse().unwrap(), &map);
        checked.map_or_else(|refused| refused.status().as_u16(), |_| 200)
    }

    const HERE: (&str, &str) = ("host", "127.0.0.1:8080");
    const COOKIE: (&str, &str) = ("cookie", "other=1; sluice_8080=0123456789abcdef");

    #[test]
    fn only_the_token_lets_in() {
        let get = |path: &str, headers: &[(&str, &str)]| ask(Method::GET, path, headers);
        assert_eq!(get("/api/runs", &[HERE]), 401);
        assert_eq!(get("/api/runs", &[HERE, COOKIE]), 200);
        assert_eq!(
            get("/api/runs", &[HERE, ("authorization", "Bearer 0123456789abcdef")]),
            200
        );
        for bad in [
            "",
            "0123456789abcde",
            "0123456789abcdef0",
            "0123456789abcdefxx",
            "0123456789abcdeF",
        ] {
            assert_eq!(
                get("/api/runs", &[HERE, ("cookie", &format!("sluice_8080={bad}"))]),
                401
            );
            assert_eq!(get(&format!("/?token={bad}"), &[HERE]), 401);
        }
        assert_eq!(
            get("/api/runs", &[HERE, ("cookie", "sluice_8081=0123456789abcdef")]),
            401
        );
        assert_eq!(get("/?token=0123456789abcdef", &[HERE]), 200);
        // Only the first page takes it in the address.
        assert_eq!(get("/api/runs?token=0123456789abcdef", &[HERE]), 401);
    }

    #[test]
    fn other_names_and_other_pages_are_refused() {
        let get = |headers: &[(&str, &str)]| ask(Method::GET, "/api/runs", headers);
        for host in [
            "evil.example",
            "evil.example:8080",
            "10.0.0.7:8080",
            "127.0.0.1.evil.example",
            "[::2]:8080",
            "",
        ] {
            assert_eq!(get(&[("host", host), COOKIE]), 403, "{host}");
        }
        for host in [
            "127.0.0.1",
            "localhost:8080",
            "LOCALHOST:9000",
            "[::1]:8080",
            "127.0.0.1:9999",
        ] {
            assert_eq!(get(&[("host", host), COOKIE]), 200, "{host}");
        }
        assert_eq!(get(&[COOKIE]), 403);
        assert_eq!(get(&[HERE, HERE, COOKIE]), 403);
        for origin in [
            "http://evil.example",
            "null",
            "http://127.0.0.1:8081",
            "https://127.0.0.1:8080",
            "",
        ] {
            assert_eq!(get(&[HERE, COOKIE, ("origin", origin)]), 403, "{origin}");
        }
        assert_eq!(get(&[HERE, COOKIE, ("origin", "http://127.0.0.1:8080")]), 200);
        for (site, status) in [
            ("cross-site", 403),
            ("same-site", 403),
            ("same-origin", 200),
            ("none", 200),
            ("", 403),
        ] {
            assert_eq!(get(&[HERE, COOKIE, ("sec-fetch-site", site)]), status, "{site}");
        }
        // The printed address may be followed from anywhere, but not be fetched by another page.
        let (first, cross) = ("/?token=0123456789abcdef", ("sec-fetch-site", "cross-site"));
        assert_eq!(ask(Method::GET, first, &[HERE, cross]), 200);
        assert_eq!(
            ask(Method::GET, first, &[HERE, cross, ("origin", "http://evil.example")]),
            403
        );
    }

    #[test]
    fn statements_come_from_the_page_or_from_a_program() {
        let post = |headers: &[(&str, &str)]| ask(Method::POST, "/api/sql", headers);
        assert_eq!(post(&[HERE, COOKIE]), 403);
        assert_eq!(post(&[HERE, COOKIE, ("origin", "http://127.0.0.1:8080")]), 200);
        assert_eq!(post(&[HERE, ("authorization", "Bearer 0123456789abcdef")]), 200);
        assert_eq!(post(&[HERE, ("origin", "http://127.0.0.1:8080")]), 401);
    }

    #[test]
    fn a_server_for_other_machines_is_known_by_numbers_only() {
        let guard = Guard::new(TOKEN, "0.0.0.0:8080".parse().unwrap());
        let get = |host| status(&guard, Method::GET, "/api/runs", &[("host", host), COOKIE]);
        assert_eq!((get("10.0.0.7:8080"), get("evil.example:8080")), (200, 403));
    }
}
