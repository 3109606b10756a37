//! The same pipeline gives the same bytes with one worker, two workers and two processes.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use crate::sluice::{Sluice, TINY, recipe, wait};

fn quickstart() -> Sluice {
    Sluice::with(&[("quickstart.yaml", &recipe("quickstart.yaml"))])
}

fn arguments<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["run", "quickstart.yaml", "--quiet"], &TINY[..], more].concat()
}

fn same(a: &Sluice, b: &Sluice) {
    let (a, b) = (a.objects(), b.objects());
    let names = |objects: &std::collections::BTreeMap<String, Vec<u8>>| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    for (name, bytes) in &a {
        assert!(*bytes == b[name], "{name} differs");
    }
    // Synthesis alone publishes two artifacts; a comparison of nothing with nothing would be easy to pass.
    assert!(a.len() > 20, "{} files", a.len());
}

#[test]
fn workers_and_processes_change_no_byte() {
    let (one, two, cluster) = (quickstart(), quickstart(), quickstart());
    one.succeed(&arguments(&["--workers", "1"]));
    two.succeed(&arguments(&["--workers", "2"]));
    same(&one, &two);
    run_as_two_processes(&cluster, &[]);
    same(&one, &cluster);
    assert_eq!(cluster.unfinished(), Vec::<std::path::PathBuf>::new());
}

/// A training whose steps two processes share, half and half or unevenly.
#[test]
fn processes_that_share_a_training_change_no_byte() {
    for replicas in [2, 3] {
        let (one, cluster) = (quickstart(), quickstart());
        let set = format!("--set=tiger.replicas={replicas}");
        one.succeed(&arguments(&["--workers", "1", &set]));
        run_as_two_processes(&cluster, &[&set]);
        same(&one, &cluster);
        assert_eq!(cluster.unfinished(), Vec::<std::path::PathBuf>::new());
        for sluice in [&one, &cluster] {
            assert_eq!(sluice.record("tiger")["preimage"]["config"]["replicas"], replicas);
        }
    }
}

fn run_as_two_processes(cluster: &Sluice, more: &[&str]) {
    // Ports that were free a moment ago.
    let sockets = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let hosts = sockets
        .each_ref()
        .map(|socket| socket.local_addr().unwrap().to_string());
    drop(sockets);
    cluster.write("hosts", format!("# a comment\n{}\n", hosts.join("\n")));
    let mut processes = ["1", "0"].map(|process| {
        let own = ["--workers", "1", "--hosts", "hosts", "--process", process];
        cluster
            .command(&arguments(&[&own[..], more].concat()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    });
    for process in &mut processes {
        assert!(wait(process, Duration::from_secs(120)).success());
    }
}
