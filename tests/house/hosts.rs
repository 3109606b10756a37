//! Three processes on three hosts: network namespaces joined by a bridge. All finish, or one is lost and the run goes on.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::sluice::{Done, Sluice, TINY, recipe};

const HOSTS: usize = 3;
/// A lost process is told within this time.
const SOON: Duration = Duration::from_secs(10);

/// A training that would take long.
const LONG: [&str; 2] = ["--set=tiger.max_steps=1000000", "--set=tiger.patience=100000"];

/// Namespaces, each with an address on a bridge that lies in a namespace of its own: nothing of it is seen outside,
/// and removing the namespaces removes all of it.
struct Hosts {
    name: String,
}

impl Hosts {
    /// `None` with a printed reason where the machine or the user has no namespaces.
    #[expect(clippy::print_stderr, reason = "a skipped test says why")]
    fn new() -> Option<Hosts> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "sluice-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        // Made first, so that half a network is torn down, too.
        let hosts = Hosts { name };
        match hosts.build() {
            Ok(()) => Some(hosts),
            Err(reason) => {
                eprintln!("skipped: no network namespaces here: {reason}");
                None
            }
        }
    }

    fn build(&self) -> Result<(), String> {
        let hub = self.namespace("hub");
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "bridge", "up"])?;
        for host in 0..HOSTS {
            let (namespace, port) = (self.namespace(&host.to_string()), format!("port{host}"));
            ip(&["netns", "add", &namespace])?;
            ip(&[
                "link", "add", "eth0", "netns", &namespace, "type", "veth", "peer", "name", &port, "netns", &hub,
            ])?;
            ip(&["-n", &hub, "link", "set", &port, "master", "bridge"])?;
            ip(&["-n", &hub, "link", "set", &port, "up"])?;
            ip(&[
                "-n",
                &namespace,
                "address",
                "add",
                &format!("{}/24", address(host)),
                "dev",
                "eth0",
            ])?;
            ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.name)
    }

    /// The command, to be run on a host.
    fn on(&self, host: usize, command: &Command) -> Command {
        let mut wrapped = Command::new("ip");
        wrapped
            .args(["netns", "exec", &self.namespace(&host.to_string())])
            .arg(command.get_program())
            .args(command.get_args())
            .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .current_dir(command.get_current_dir().unwrap_or(Path::new(".")))
            .stdin(Stdio::null());
        wrapped
    }

    /// Starts the pipeline on every host, over the store of `sluice`.
    fn start(&self, sluice: &Sluice, more: &[&str]) -> Cluster {
        let addresses = std::array::from_fn(|host| format!("{}:4101", address(host)));
        Cluster::start(sluice, &addresses, more, |host, command| self.on(host, &command))
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // What was never made cannot be removed.
        for host in 0..HOSTS {
            let _ = ip(&["netns", "delete", &self.namespace(&host.to_string())]);
        }
        let _ = ip(&["netns", "delete", &self.namespace("hub")]);
    }
}

/// Processes of a run; none outlives its test.
struct Cluster {
    processes: Vec<Child>,
}

impl Cluster {
    /// Starts the pipeline at every address, over the store of `sluice`; `on` says how a command gets there.
    fn start(
        sluice: &Sluice,
        addresses: &[String; HOSTS],
        more: &[&str],
        on: impl Fn(usize, Command) -> Command,
    ) -> Cluster {
        sluice.write("hosts", addresses.join("\n"));
        let start = |host: usize| {
            let process = host.to_string();
            let cluster = ["--workers", "1", "--hosts", "hosts", "--process", &process, "--json"];
            let arguments = [&["run", "quickstart.yaml"], &TINY[..], more, &cluster].concat();
            let stream = |name: &str| std::fs::File::create(sluice.path(&format!("{name}{host}"))).unwrap();
            on(host, sluice.command(&arguments))
                .stdout(stream("out"))
                .stderr(stream("err"))
                .spawn()
                .unwrap()
        };
        Cluster {
            processes: (0..HOSTS).map(start).collect(),
        }
    }

    /// Kills a process once the training is under way; the others must tell that it is lost, and soon.
    fn lose(&mut self, sluice: &Sluice, victim: usize) {
        let start = Instant::now();
        let training = |line: &str| line.contains("stage_progress") && line.contains("\"tiger\"");
        while !written(sluice, "out", 0).lines().any(training) {
            assert!(start.elapsed() < Duration::from_secs(60), "the training did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.processes[victim].kill().unwrap();
        let ended = self.ended(SOON);
        for (host, code) in ended.into_iter().enumerate().filter(|(host, _)| *host != victim) {
            let told = written(sluice, "err", host);
            assert_eq!(code, Some(4), "process {host}: {told}");
            assert_eq!(told.matches("error[lost-process]").count(), 1, "{told}");
            assert!(told.contains("start all processes again to continue"), "{told}");
            assert!(!told.contains("panicked"), "{told}");
        }
        assert!(!sluice.published().contains("train_tiger"));
    }

    /// Exit codes once all have ended, -1 for a signal; after the limit `None` for those that still run.
    fn ended(&mut self, limit: Duration) -> Vec<Option<i32>> {
        let start = Instant::now();
        loop {
            let ended: Vec<_> = self
                .processes
                .iter_mut()
                .map(|child| child.try_wait().unwrap())
                .collect();
            if ended.iter().all(Option::is_some) || start.elapsed() > limit {
                let code = |status: std::process::ExitStatus| status.code().unwrap_or(-1);
                return ended.into_iter().map(|status| status.map(code)).collect();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.map_err(|error| format!("\"ip\": {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "\"ip {}\": {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

fn address(host: usize) -> String {
    format!("10.83.7.{}", host + 1)
}

fn quickstart() -> Sluice {
    Sluice::with(&[("quickstart.yaml", &recipe("quickstart.yaml"))])
}

fn alone(sluice: &Sluice) -> Done {
    sluice.succeed(&[&["run", "quickstart.yaml", "--json"], &TINY[..]].concat())
}

/// What a process wrote to a stream of its own.
fn written(sluice: &Sluice, name: &str, process: usize) -> String {
    std::fs::read_to_string(sluice.path(&format!("{name}{process}"))).unwrap()
}

/// What the first process told. While it waits for the others, timely writes lines of its own between the events.
fn told(sluice: &Sluice) -> Done {
    let events = |line: &&str| line.starts_with('{');
    let out = written(sluice, "out", 0)
        .lines()
        .filter(events)
        .collect::<Vec<_>>()
        .join("\n");
    Done {
        code: 0,
        signal: None,
        out,
        err: String::new(),
        seconds: 0.0,
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").args([from, to]).status().unwrap();
    assert!(copied.success());
}

#[test]
fn three_hosts_make_the_bytes_of_one() {
    let Some(hosts) = Hosts::new() else { return };
    let (one, three) = (quickstart(), quickstart());
    alone(&one);
    let mut cluster = hosts.start(&three, &[]);
    let ended = cluster.ended(Duration::from_secs(120));
    assert_eq!(ended, [Some(0); HOSTS], "{}", written(&three, "err", 0));
    let (one, three) = (one.objects(), three.objects());
    assert!(one.len() > 20, "{} files", one.len());
    assert!(one == three, "artifacts differ");
}

#[test]
fn a_killed_host_ends_the_run_and_the_next_one_goes_on() {
    let Some(hosts) = Hosts::new() else { return };
    let sluice = quickstart();
    hosts.start(&sluice, &LONG).lose(&sluice, 2);

    // One process goes on, and so do three.
    let single = quickstart();
    copy(&sluice.path(".sluice"), &single.path(".sluice"));
    let mut again = hosts.start(&sluice, &[]);
    assert_eq!(again.ended(Duration::from_secs(120)), [Some(0); HOSTS]);
    for ran in [alone(&single).ran(), told(&sluice).ran()] {
        assert!(ran.contains("tiger") && ran.contains("metrics"), "{ran:?}");
        assert!(!ran.contains("sids") && !ran.contains("tokens"), "{ran:?}");
    }
    assert!(single.objects() == sluice.objects(), "artifacts differ");
    assert!(sluice.unfinished().is_empty(), "{:?}", sluice.unfinished());
}

/// The same without namespaces, whichever process it is.
#[test]
fn whoever_is_killed_the_others_say_so() {
    for victim in 0..HOSTS {
        let sluice = quickstart();
        // Ports that were free a moment ago.
        let sockets: [TcpListener; HOSTS] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = sockets
            .each_ref()
            .map(|socket| socket.local_addr().unwrap().to_string());
        drop(sockets);
        Cluster::start(&sluice, &addresses, &LONG, |_, command| command).lose(&sluice, victim);
    }
}
