//! What `updraft doctor` and `updraft topology` say of machines: of this one, and of others whose files are laid out
//! here as their kernels do it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;

mod support;

use support::{Launch, command, skip::skipped};

/// A folder that holds a machine's `/sys`, `/proc` and `/etc`.
struct Machine(TempDir);

impl Machine {
    /// Two sockets with four cores each, of two threads each; two memory nodes; an Ethernet and an RDMA device at the
    /// second node. Nothing is wrong with it.
    fn two_sockets() -> Self {
        let machine = Self(TempDir::new().unwrap());
        machine.say("proc/sys/kernel/osrelease", "6.8.0-31-generic");
        machine.say(
            "proc/meminfo",
            "MemTotal:       263000000 kB\nMemFree:        100000000 kB\nMemAvailable:   200000000 kB",
        );
        machine.say(
            "proc/cpuinfo",
            "processor\t: 0\nmodel name\t: Xeon Test 4242",
        );
        machine.say("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-15");
        machine.say("proc/self/cgroup", "0::/user.slice/job");
        machine.limits("unlimited", "65536");
        machine.say("proc/sys/vm/overcommit_memory", "0");
        machine.say("proc/sys/kernel/numa_balancing", "0");
        machine.say("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t16777216");
        machine.say("proc/sys/net/ipv4/tcp_wmem", "4096\t65536\t16777216");
        machine.say("sys/fs/cgroup/user.slice/job/memory.max", "max");
        machine.say("sys/fs/cgroup/user.slice/job/cpu.max", "max 100000");
        let pages = "sys/kernel/mm/transparent_hugepage/shmem_enabled";
        machine.say(pages, "always within_size [advise] never deny force");
        machine.say(
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            "512",
        );
        let clock = "sys/devices/system/clocksource/clocksource0/current_clocksource";
        machine.say(clock, "tsc");
        machine.say("sys/devices/system/cpu/online", "0-15");
        machine.say("sys/devices/system/cpu/intel_pstate/no_turbo", "0");
        for cpu in 0..16 {
            machine.processor(cpu);
        }
        for node in 0..2 {
            let at = |name: &str| format!("sys/devices/system/node/node{node}/{name}");
            let first = 4 * node;
            let cores = format!("{first}-{},{}-{}", first + 3, first + 8, first + 11);
            machine.say(&at("cpulist"), &cores);
            machine.say(&at("distance"), ["10 21", "21 10"][node]);
            let memory = format!(
                "Node {node} MemTotal:   131072000 kB\nNode {node} MemFree:    50331648 kB"
            );
            machine.say(&at("meminfo"), &memory);
        }
        machine.say("sys/class/net/eth0/operstate", "up");
        machine.say("sys/class/net/eth0/speed", "100000");
        machine.say("sys/class/net/eth0/mtu", "9000");
        machine.say("sys/class/net/eth0/device/numa_node", "1");
        machine.link(
            "sys/class/net/eth0/device/driver",
            "../../bus/pci/drivers/mlx5_core",
        );
        machine.say("sys/class/net/bonding_masters", "");
        machine.say("sys/class/infiniband/mlx5_0/device/numa_node", "1");
        let port = |name: &str| format!("sys/class/infiniband/mlx5_0/ports/1/{name}");
        machine.say(&port("state"), "4: ACTIVE");
        machine.say(&port("rate"), "100 Gb/sec (4X EDR)");
        machine.say(&port("link_layer"), "Ethernet");
        machine.say(
            "etc/ld.so.cache",
            "glibc-ld.so.cache1.1\0libibverbs.so.1\0/lib/libibverbs.so.1\0",
        );
        machine
    }

    /// Processors 8 to 15 are the second threads of the cores 0 to 7.
    fn processor(&self, cpu: usize) {
        let at = |name: &str| format!("sys/devices/system/cpu/cpu{cpu}/{name}");
        let core = cpu % 8;
        let (siblings, socket) = (format!("{core},{}", core + 8), core / 4);
        self.say(&at("topology/thread_siblings_list"), &siblings);
        self.say(&at("topology/physical_package_id"), &socket.to_string());
        self.say(&at("cpufreq/scaling_governor"), "performance");
        let first = 4 * socket;
        let whole = format!("{first}-{},{}-{}", first + 3, first + 8, first + 11);
        let caches = [
            ("1", "Data", "48K", &siblings),
            ("1", "Instruction", "32K", &siblings),
            ("2", "Unified", "2048K", &siblings),
            ("3", "Unified", "61440K", &whole),
        ];
        for (index, (level, kind, size, shared)) in caches.into_iter().enumerate() {
            let at = |name: &str| at(&format!("cache/index{index}/{name}"));
            self.say(&at("level"), level);
            self.say(&at("type"), kind);
            self.say(&at("size"), size);
            self.say(&at("coherency_line_size"), "64");
            self.say(&at("shared_cpu_list"), shared);
        }
    }

    fn limits(&self, locked: &str, files: &str) {
        self.say(
            "proc/self/limits",
            &format!(
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max file size             unlimited            unlimited            bytes\n\
                 Max processes             96364                96364                processes\n\
                 Max open files            {files:<20} 65536                files\n\
                 Max locked memory         {locked:<20} 65536                bytes"
            ),
        );
    }

    fn say(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn ask(&self, what: &str, options: &[&str]) -> Launch {
        let mut command = command();
        command
            .arg(what)
            .arg("--root")
            .arg(self.0.path())
            .args(options);
        Launch::of(command)
    }

    fn doctor(&self) -> Findings {
        Findings::of(self.ask("doctor", &["--json"]))
    }
}

/// What the doctor said.
struct Findings {
    code: Option<i32>,
    all: Value,
}

impl Findings {
    fn of(launch: Launch) -> Self {
        let all: Value = serde_json::from_str(&launch.out).unwrap();
        Self {
            code: launch.code(),
            all,
        }
    }

    /// The verdict on one thing, and all that was said of it.
    fn about(&self, name: &str) -> (String, String) {
        let checks = self.all["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == name);
        let check = check.unwrap_or_else(|| panic!("nothing is said of {name}"));
        let say = |key: &str| check[key].as_str().unwrap().to_owned();
        let words = ["found", "cost", "fix"].map(say).join("; ");
        (say("verdict"), words)
    }

    fn names_that_are(&self, verdict: &str) -> Vec<&str> {
        let checks = self.all["checks"].as_array().unwrap().iter();
        let such = checks.filter(|check| check["verdict"] == verdict);
        such.map(|check| check["name"].as_str().unwrap()).collect()
    }

    fn assert(&self, name: &str, verdict: &str, words: &[&str]) {
        let (found, said) = self.about(name);
        assert_eq!(found, verdict, "{name}: {said}");
        for word in words {
            assert!(said.contains(word), "{name}: {word:?} is not in {said:?}");
        }
    }
}

#[test]
fn a_machine_without_fault_passes_every_check() {
    let findings = Machine::two_sockets().doctor();
    assert_eq!(findings.names_that_are("warn"), [""; 0]);
    assert_eq!(findings.names_that_are("fail"), [""; 0]);
    assert_eq!(findings.code, Some(0));
    assert_eq!(findings.all["ok"], true);
    findings.assert("NUMA", "ok", &["2 nodes"]);
    findings.assert("reserved huge pages", "ok", &["512 of 2 MiB"]);
    findings.assert("RDMA", "ok", &["mlx5_0"]);
    findings.assert("/dev/shm", "ok", &["not used"]);
}

#[test]
fn each_fault_is_found_alone_with_its_cost_and_its_fix() {
    let governor = "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor";
    let clock = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    let turbo = "sys/devices/system/cpu/intel_pstate/no_turbo";
    let pages = "sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let port = "sys/class/infiniband/mlx5_0/ports/1/state";
    let job = |name: &str| format!("sys/fs/cgroup/user.slice/job/{name}");
    let tight = "MemTotal: 100000 kB\nMemAvailable: 50000 kB";
    let small = "MemTotal: 900000 kB\nMemAvailable: 500000 kB";
    let tcp = "proc/sys/net/ipv4/tcp_wmem";
    for (file, text, name, verdict, word) in [
        (
            "proc/sys/kernel/osrelease",
            "5.2.0-rc1",
            "kernel",
            "fail",
            "5.3",
        ),
        ("proc/meminfo", tight, "memory", "fail", "48.8 MiB"),
        ("proc/meminfo", small, "memory", "warn", "488.3 MiB"),
        (
            "proc/sys/vm/overcommit_memory",
            "2",
            "overcommit",
            "warn",
            "sysctl -w",
        ),
        (
            "proc/sys/kernel/numa_balancing",
            "1",
            "NUMA",
            "warn",
            "sysctl -w",
        ),
        (
            "proc/self/status",
            "Cpus_allowed_list:\t3",
            "processors",
            "warn",
            "taskset -c 0-15",
        ),
        (tcp, "4096 16384 65536", "TCP buffers", "warn", "64 KiB out"),
        (
            &job("memory.max"),
            "536870912",
            "cgroup memory",
            "warn",
            "--memory 384m",
        ),
        (
            &job("memory.max"),
            "33554432",
            "cgroup memory",
            "fail",
            "memory.max",
        ),
        (
            &job("cpu.max"),
            "150000 100000",
            "cgroup quota",
            "warn",
            "--executors 1",
        ),
        (&job("pids.max"), "16", "processes", "fail", "pids.max"),
        (
            &job("io.max"),
            "8:0 rbps=1048576",
            "input and output",
            "warn",
            "io.max",
        ),
        (governor, "powersave", "frequency", "warn", "cpupower"),
        (turbo, "1", "turbo", "warn", "echo 0 >"),
        (clock, "hpet", "clock", "warn", "hpet"),
        (
            pages,
            "always advise [never] deny",
            "huge pages",
            "warn",
            "echo advise > /sys",
        ),
        (port, "1: DOWN", "RDMA", "fail", "no port is active"),
        (
            "etc/ld.so.cache",
            "libibverbs.so.10",
            "RDMA",
            "fail",
            "apt-get install",
        ),
    ] {
        let machine = Machine::two_sockets();
        machine.say(file, text);
        let findings = machine.doctor();
        findings.assert(name, verdict, &[word]);
        assert_eq!(findings.names_that_are(verdict), [name], "{file}");
        assert_eq!(findings.code, Some(i32::from(verdict == "fail")), "{file}");
    }
}

#[test]
fn little_locked_memory_matters_where_there_is_an_rdma_device() {
    let machine = Machine::two_sockets();
    machine.limits("65536", "65536");
    let findings = machine.doctor();
    findings.assert(
        "locked memory",
        "fail",
        &["64 KiB", "TCP", "ulimit -l unlimited"],
    );
    assert_eq!(findings.code, Some(1));
    fs::remove_dir_all(machine.path("sys/class/infiniband")).unwrap();
    let findings = machine.doctor();
    findings.assert("locked memory", "ok", &["64 KiB"]);
    findings.assert("RDMA", "ok", &["no devices"]);
    assert_eq!(findings.code, Some(0));
}

/// A container with the time of 1.5 processors, 512 MiB of which 100 are used, 64 KiB to lock, and the first four
/// processors, as either version of control groups says it.
fn container(version: u32) -> Machine {
    let machine = Machine::two_sockets();
    machine.limits("65536", "1024");
    machine.say("proc/self/status", "Cpus_allowed_list:\t0-3");
    fs::remove_dir_all(machine.path("sys/class/infiniband")).unwrap();
    fs::remove_dir_all(machine.path("sys/fs/cgroup")).unwrap();
    if version == 2 {
        let at = |name: &str| format!("sys/fs/cgroup/{name}");
        machine.say("proc/self/cgroup", "0::/");
        machine.say(&at("memory.max"), "536870912");
        machine.say(&at("memory.current"), "104857600");
        machine.say(&at("cpu.max"), "150000 100000");
        machine.say(&at("cpuset.cpus.effective"), "0-3");
        machine.say(&at("cpuset.mems.effective"), "0");
    } else {
        // The path is that of the host, and the folder that of the container.
        let lines = ["9:memory", "3:cpuset", "2:cpu,cpuacct", "1:name=systemd"];
        machine.say(
            "proc/self/cgroup",
            &lines.map(|line| format!("{line}:/docker/4f1")).join("\n"),
        );
        machine.say("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912");
        machine.say("sys/fs/cgroup/memory/memory.usage_in_bytes", "104857600");
        machine.say("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000");
        machine.say("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000");
        machine.say("sys/fs/cgroup/cpuset/cpuset.effective_cpus", "0-3");
        machine.say("sys/fs/cgroup/cpuset/cpuset.effective_mems", "0");
    }
    machine
}

#[test]
fn the_limits_of_a_container_are_found_in_both_versions_of_control_groups() {
    for version in [1, 2] {
        let machine = container(version);
        let findings = machine.doctor();
        let quota = ["1.50 processors", "100 ms", "--executors 1"];
        findings.assert("cgroup quota", "warn", &quota);
        let memory = ["412 MiB left of 512 MiB", "--memory 309m"];
        findings.assert("cgroup memory", "warn", &memory);
        findings.assert("processors", "ok", &["4 of 16", "cpuset 0-3"]);
        findings.assert("NUMA", "ok", &["memory from 0"]);
        findings.assert("open files", "warn", &["1024", "ulimit -n"]);
        findings.assert("locked memory", "ok", &["64 KiB"]);
        assert_eq!(findings.code, Some(0), "version {version}");
        let told = machine.ask("topology", &[]).out;
        let last = "└── this process may use processors 0-3, cpuset 0-3, the time of 1.50 processors, 512 MiB of memory\n";
        assert!(told.ends_with(last), "{told}");
    }
}

#[test]
fn the_topology_of_two_sockets_is_drawn() {
    let told = Machine::two_sockets().ask("topology", &[]);
    assert_eq!(told.code(), Some(0));
    let lines: Vec<&str> = told.out.lines().collect();
    let heading = "Xeon Test 4242: 2 sockets, 8 cores, 16 processors, 2 NUMA nodes";
    assert_eq!(lines[0], heading);
    for line in [
        "├── NUMA node 1: 125 GiB, 48 GiB free, processors 4-7,12-15, distances 21 10",
        "│   ├── core 4, socket 1: threads 4,12",
        "│   ├── L1d: 48 KiB each, lines of 64 B, shared by processors 0,8 | 1,9 | 2,10 | 3,11 | 4,12 | 5,13 | 6,14 | 7,15",
        "│   └── L3: 60 MiB each, lines of 64 B, shared by processors 0-3,8-11 | 4-7,12-15",
        "│   └── eth0: up, 100 Gbit/s, MTU 9000, driver mlx5_core, NUMA node 1",
        "│   └── mlx5_0, NUMA node 1; port 1: Ethernet, ACTIVE, 100 Gb/sec (4X EDR)",
    ] {
        assert!(lines.contains(&line), "{line}\nis not in\n{}", told.out);
    }
}

#[test]
fn the_topology_of_two_sockets_is_told_to_programs() {
    let told = Machine::two_sockets().ask("topology", &["--json"]);
    let told: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(told["sockets"], 2);
    assert_eq!(told["processors"], 16);
    assert_eq!(told["cores"].as_array().unwrap().len(), 8);
    assert_eq!(told["cores"][5]["threads"], serde_json::json!([5, 13]));
    assert_eq!(told["cores"][5]["socket"], 1);
    assert_eq!(told["nodes"][1]["memory_bytes"], 131_072_000_u64 << 10);
    assert_eq!(told["nodes"][0]["distances"], serde_json::json!([10, 21]));
    let last = &told["caches"][3];
    assert_eq!(last["bytes"], 60 << 20);
    assert_eq!(
        last["shared_by"][1],
        serde_json::json!([4, 5, 6, 7, 12, 13, 14, 15])
    );
    assert_eq!(told["network"].as_array().unwrap().len(), 1);
    assert_eq!(told["network"][0]["megabits"], 100_000);
    assert_eq!(told["rdma"][0]["ports"][0]["state"], "4: ACTIVE");
}

/// Every file below a folder.
fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else if path.is_file() {
            found.push(path);
        }
    }
}

#[test]
fn files_that_make_no_sense_or_are_missing_stop_neither_command() {
    let odd = [
        "",
        "-1",
        "18446744073709551615",
        "[",
        "0-18446744073709551615",
        "\u{e9}:\n: ::",
    ];
    for text in odd {
        let machine = Machine::two_sockets();
        let mut files = Vec::new();
        files_below(machine.0.path(), &mut files);
        for file in &files {
            fs::write(file, text).unwrap();
        }
        for what in ["doctor", "topology"] {
            for options in [&[][..], &["--json"]] {
                let told = machine.ask(what, options);
                assert!(
                    matches!(told.code(), Some(0 | 1)),
                    "{what} of {text:?}: {}",
                    told.err
                );
                assert_eq!(told.err, "", "{what} of {text:?}");
            }
        }
    }
    let nothing = Machine(TempDir::new().unwrap());
    assert!(matches!(nothing.ask("doctor", &[]).code(), Some(0 | 1)));
    assert_eq!(nothing.ask("topology", &[]).code(), Some(0));
}

#[test]
fn this_machine_is_examined_and_what_a_job_does_is_tried() {
    let mut doctor = command();
    doctor.args(["doctor", "--json"]);
    let findings = Findings::of(Launch::of(doctor));
    assert!(findings.all["checks"].as_array().unwrap().len() > 20);
    for name in [
        "memfd",
        "Unix sockets",
        "pidfd",
        "loopback TCP",
        "link by shm",
        "link by TCP",
    ] {
        findings.assert(name, "ok", &[]); // Else no other test here would pass.
    }
    let failed = !findings.names_that_are("fail").is_empty();
    assert_eq!(findings.code, Some(i32::from(failed)));
    let mut doctor = command();
    doctor.arg("doctor");
    let told = Launch::of(doctor).out;
    for line in told.lines() {
        let fixed = line.contains("; fix: ");
        let bad = line.starts_with("warn ") || line.starts_with("fail ");
        assert_eq!(bad, fixed, "{line}");
    }
}

#[test]
fn a_real_limit_on_open_files_is_found_with_its_fix() {
    let program = command().get_program().to_owned();
    let mut doctor = Command::new("sh");
    doctor
        .args(["-c", "ulimit -n 64 && exec \"$0\" doctor --json"])
        .arg(program);
    let findings = Findings::of(Launch::of(doctor));
    findings.assert("open files", "fail", &["64", "ulimit -n 65536"]);
    assert_eq!(findings.code, Some(1));
}

#[test]
fn a_loopback_that_is_down_is_found_by_trying_it() {
    let program = command().get_program().to_owned();
    let mut doctor = Command::new("unshare");
    doctor
        .args(["--net", "--"])
        .arg(program)
        .args(["doctor", "--json"]);
    let launch = Launch::of(doctor);
    if launch.out.is_empty() {
        skipped(format_args!("no network namespaces here: {}", launch.err));
        return;
    }
    let findings = Findings::of(launch);
    findings.assert("loopback TCP", "fail", &["ip link set lo up"]);
    findings.assert("link by TCP", "fail", &[]);
    findings.assert("link by shm", "ok", &[]);
    assert_eq!(findings.code, Some(1));
}
