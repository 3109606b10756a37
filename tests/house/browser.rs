//! A real browser, driven over a pipe by the Chrome DevTools protocol: it clicks, types and looks, as a person would.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::sluice::entries;

/// How long the browser may take for one answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser that runs without a screen, or `None` with a printed reason.
#[expect(clippy::print_stderr, reason = "a skipped test says why")]
pub fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome-headless-shell"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name)));
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let installed = entries(&home.join(".cache/ms-playwright")).into_iter();
    let installed = installed
        .flat_map(|folder| ["chrome-linux/chrome", "chrome-linux/headless_shell"].map(|name| folder.join(name)));
    let found = on_path.chain(installed).find(|path| path.is_file());
    if found.is_none() {
        eprintln!(
            "skipped: no browser; looked for {} and for one of playwright",
            names.join(", ")
        );
    }
    found
}

/// A tab of a browser without a screen.
pub struct Tab {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    next: u64,
    session: Option<String>,
    /// What pages complained about.
    pub complaints: Vec<String>,
    _profile: TempDir,
}

impl Tab {
    /// Starts a browser with one empty tab.
    pub fn open(browser: &Path) -> Tab {
        let profile = tempfile::tempdir().unwrap();
        let flags = [
            "--headless",
            // Pages are left by the hundred in a few seconds.
            "--disable-ipc-flooding-protection",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--remote-debugging-pipe",
        ];
        // The protocol speaks over the third and fourth file of the browser.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null", "sh"])
            .arg(browser)
            .args(flags)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (told, from) = channel();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while out.read_until(0, &mut message).is_ok_and(|read| read > 0) {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else {
                    return;
                };
                message.clear();
                if told.send(value).is_err() {
                    return;
                }
            }
        });
        let mut tab = Tab {
            to: child.stdin.take().unwrap(),
            child,
            from,
            next: 0,
            session: None,
            complaints: Vec::new(),
            _profile: profile,
        };
        let target = tab.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = tab.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        tab.session = attached["sessionId"].as_str().map(str::to_string);
        for domain in ["Page", "Runtime", "Log"] {
            tab.call(&format!("{domain}.enable"), json!({}));
        }
        tab
    }

    /// Calls a method of the protocol.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut message = json!({ "id": self.next, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let told = self.from.recv_timeout(left);
            let mut told = told.unwrap_or_else(|_| panic!("the browser does not answer {method}"));
            if told["id"] == self.next {
                assert!(told["error"].is_null(), "{method}: {}", told["error"]);
                return told["result"].take();
            }
            match told["method"].as_str() {
                Some("Runtime.exceptionThrown" | "Log.entryAdded") => self.complaints.push(told["params"].to_string()),
                Some("Runtime.consoleAPICalled") if told["params"]["type"] == "error" => {
                    self.complaints.push(told["params"].to_string());
                }
                _ => {}
            }
        }
    }

    /// Opens an address.
    pub fn go(&mut self, address: &str) {
        self.call("Page.navigate", json!({ "url": address }));
    }

    /// The value of an expression.
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut done = self.call("Runtime.evaluate", params);
        assert!(done["exceptionDetails"].is_null(), "{expression}: {done}");
        done["result"]["value"].take()
    }

    /// Waits until an expression holds.
    pub fn wait(&mut self, expression: &str, limit: Duration) {
        let start = Instant::now();
        // While a page is loaded there may be nothing to ask.
        let holds = format!("(() => {{ try {{ return !!({expression}); }} catch {{ return false; }} }})()");
        while self.value(&holds) != true {
            if start.elapsed() > limit {
                let page = self.value("document.body.innerText.slice(0, 3000)");
                panic!(
                    "not so after {limit:?}: {expression}\n{}",
                    page.as_str().unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for an element and clicks on what lies in its middle. In one step, because pages change while they are looked at.
    pub fn click(&mut self, selector: &str) {
        let clicked = format!(
            "(() => {{ const e = document.querySelector({}); e.scrollIntoView({{ block: 'center', inline: 'center' }}); \
            const r = e.getBoundingClientRect(); const hit = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2); \
            if (!e.contains(hit)) return false; e.focus(); \
            hit.dispatchEvent(new MouseEvent('click', {{ bubbles: true, cancelable: true, view: window }})); return true; }})()",
            json!(selector)
        );
        self.wait(&clicked, Duration::from_secs(20));
    }

    /// Types a text where the focus is, in the place of what stands there.
    pub fn write(&mut self, text: &str) {
        self.value("document.activeElement.select()");
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Presses Enter with the control key held.
    pub fn control_enter(&mut self) {
        for kind in ["rawKeyDown", "keyUp"] {
            let params =
                json!({ "type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": 2 });
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    /// How large the page is shown, and whether dark.
    pub fn look(&mut self, width: u32, height: u32, dark: bool) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// Milliseconds from the start of the navigation to the first paint with words in it.
    pub fn first_paint(&mut self) -> f64 {
        let paint = "performance.getEntriesByName('first-contentful-paint')[0]";
        self.wait(paint, Duration::from_secs(20));
        self.value(&format!("{paint}.startTime")).as_f64().unwrap()
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
