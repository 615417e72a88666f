//! What the kernel's files say.

use super::Check;
use crate::{
    kernel::{Cgroup, Kernel, Limit, bytes, list, numbers},
    topology::Topology,
};

/// The least that one executor works in.
const MEMORY_MIN: u64 = 64 << 20;
/// Less than this makes the arenas of a few executors small.
const MEMORY_ENOUGH: u64 = 1 << 30;
/// Descriptors of a worker with a handful of peers, and of one with hundreds: some of each link, and three of each
/// executor.
const DESCRIPTORS_MIN: u64 = 128;
const DESCRIPTORS_ENOUGH: u64 = 4096;
/// Processes and threads of a small job.
const PROCESSES_MIN: u64 = 64;
const PROCESSES_ENOUGH: u64 = 1024;
/// An RDMA device registers whole arenas, each of up to so many bytes.
const LOCKED_ENOUGH: u64 = 1 << 30;
/// What keeps a connection of 100 Gbit/s busy over a tenth of a millisecond.
const SOCKET_BYTES_ENOUGH: u64 = 4 << 20;
/// The kernel that has `pidfd_open`, by which deaths of processes are seen.
const KERNEL_MIN: (u32, u32) = (5, 3);

/// Everything that there is a file for.
pub(super) fn examine(kernel: &Kernel) -> Vec<Check> {
    let (cgroup, topology) = (Cgroup::of(kernel), Topology::of(kernel));
    let checks = [
        version(kernel),
        memory(kernel),
        overcommit(kernel),
        cgroup_memory(&cgroup),
        cores(kernel, &cgroup),
        quota(kernel, &cgroup),
        numa(kernel, &cgroup, &topology),
        transparent_huge_pages(kernel),
        reserved_huge_pages(kernel),
        descriptors(kernel),
        processes(kernel, &cgroup),
        file_size(kernel, &cgroup),
        locked_memory(kernel, &topology),
        rdma(kernel, &topology),
        shm_folder(),
        socket_buffers(kernel),
        clock(kernel),
        governor(kernel),
        turbo(kernel),
        ptrace(kernel),
    ];
    checks.into_iter().collect()
}

fn version(kernel: &Kernel) -> Check {
    let Some(release) = kernel.text("proc/sys/kernel/osrelease") else {
        return Check::ok("kernel", "unknown");
    };
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let mut part = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    let version = (part(), part());
    let check = Check::ok("kernel", release);
    if version < KERNEL_MIN {
        let cost = "it cannot tell the death of a process, so there is no shared memory";
        return check.fail(cost, "boot Linux 5.3 or later");
    }
    check
}

fn memory(kernel: &Kernel) -> Check {
    let [total, available] =
        ["MemTotal", "MemAvailable"].map(|key| kernel.kilobytes("proc/meminfo", key));
    let (Some(total), Some(available)) = (total, available) else {
        return Check::ok("memory", "unknown");
    };
    let found = format!("{} available of {}", bytes(available), bytes(total));
    let check = Check::ok("memory", found);
    let fix = "ps -eo rss,pid,comm --sort -rss | head # and end what is not needed";
    match available {
        ..MEMORY_MIN => check.fail("an executor does not fit", fix),
        MEMORY_MIN..MEMORY_ENOUGH => {
            check.warn("arenas are small, so few messages are on their way", fix)
        }
        _ => check,
    }
}

fn overcommit(kernel: &Kernel) -> Check {
    let mode: u32 = kernel.number("proc/sys/vm/overcommit_memory").unwrap_or(0);
    let check = Check::ok("overcommit", format!("vm.overcommit_memory = {mode}"));
    if mode == 2 {
        let cost = "memory that is mapped counts as used, so large arenas are refused";
        return check.warn(cost, "sysctl -w vm.overcommit_memory=0");
    }
    check
}

fn cgroup_memory(cgroup: &Cgroup) -> Check {
    let Some(limit) = cgroup.memory_bytes_max else {
        return Check::ok("cgroup memory", "no limit");
    };
    let used = cgroup.memory_bytes.unwrap_or(0);
    let left = limit.saturating_sub(used);
    let check = Check::ok(
        "cgroup memory",
        format!("{} left of {}", bytes(left), bytes(limit)),
    );
    let fix = "raise memory.max of the group (docker run --memory, resources.limits.memory, sbatch --mem)";
    match left {
        ..MEMORY_MIN => check.fail(
            "an executor does not fit, and the kernel kills what uses more",
            fix,
        ),
        MEMORY_MIN..MEMORY_ENOUGH => {
            let cost = "arenas are small, and the kernel kills what uses more";
            let memory = (left / 4 * 3) >> 20;
            check.warn(cost, format!("{fix}, or updraft run --memory {memory}m"))
        }
        _ => check,
    }
}

fn cores(kernel: &Kernel, cgroup: &Cgroup) -> Check {
    let allowed = kernel
        .value("proc/self/status", "Cpus_allowed_list")
        .map(|text| numbers(&text))
        .unwrap_or_default();
    let online = kernel.list("sys/devices/system/cpu/online");
    let mut found = format!(
        "{} of {} processors: {}",
        allowed.len(),
        online.len(),
        list(&allowed)
    );
    if !cgroup.cores.is_empty() {
        found += &format!(", cpuset {}", list(&cgroup.cores));
    }
    let check = Check::ok("processors", found);
    if allowed.len() == 1 && online.len() > 1 {
        let cost = "all executors of this machine share one";
        return check.warn(cost, format!("taskset -c {} updraft ...", list(&online)));
    }
    check
}

fn quota(kernel: &Kernel, cgroup: &Cgroup) -> Check {
    let Some(processors) = cgroup.processors_max else {
        return Check::ok("cgroup quota", "no quota");
    };
    let period_ms = cgroup.period_us.unwrap_or(100_000) as f64 / 1e3;
    let check = Check::ok(
        "cgroup quota",
        format!("{processors:.2} processors, in periods of {period_ms:.0} ms"),
    );
    let online = kernel.list("sys/devices/system/cpu/online").len();
    if processors >= online as f64 {
        return check;
    }
    let executors = (processors.floor() as u32).max(1);
    let cost = format!(
        "more than {executors} busy {} stopped for the rest of each period",
        if executors == 1 {
            "executor is"
        } else {
            "executors are"
        }
    );
    let fix =
        format!("updraft run --executors {executors} ..., or remove cpu.max and use a cpuset");
    check.warn(cost, fix)
}

fn numa(kernel: &Kernel, cgroup: &Cgroup, topology: &Topology) -> Check {
    let nodes = topology.nodes.len();
    let mut found = format!("{nodes} {}", if nodes == 1 { "node" } else { "nodes" });
    if !cgroup.nodes.is_empty() && cgroup.nodes.len() < nodes {
        found += &format!(", memory from {}", list(&cgroup.nodes));
    }
    let balancing: u32 = kernel.number("proc/sys/kernel/numa_balancing").unwrap_or(0);
    if nodes > 1 && balancing > 0 {
        let check = Check::ok("NUMA", found + ", pages are moved by the kernel");
        let cost = "executors are pinned, so every such move is a fault for nothing";
        return check.warn(cost, "sysctl -w kernel.numa_balancing=0");
    }
    Check::ok("NUMA", found)
}

fn transparent_huge_pages(kernel: &Kernel) -> Check {
    let file = "sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let Some(mode) = kernel.chosen(file) else {
        let check = Check::ok("huge pages", "none for shared memory in this kernel");
        let cost = "arenas are of 4 KiB pages, whose addresses miss the TLB sooner";
        return check.warn(cost, "boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE");
    };
    let check = Check::ok("huge pages", format!("shared memory: {mode}"));
    if matches!(mode.as_str(), "never" | "deny") {
        let cost = "arenas are of 4 KiB pages, whose addresses miss the TLB sooner";
        return check.warn(cost, format!("echo advise > /{file}"));
    }
    check
}

fn reserved_huge_pages(kernel: &Kernel) -> Check {
    let pools: Vec<String> = kernel
        .huge_page_pools()
        .into_iter()
        .filter(|&(_, pages)| pages > 0)
        .map(|(page, pages)| format!("{pages} of {}", bytes(page)))
        .collect();
    if pools.is_empty() {
        return Check::ok("reserved huge pages", "none, and none are needed");
    }
    Check::ok(
        "reserved huge pages",
        pools.join(", ") + ", which arenas do not use",
    )
}

fn descriptors(kernel: &Kernel) -> Check {
    let limit = kernel.limit("Max open files").unwrap_or(Limit::None);
    let check = Check::ok("open files", told(limit, |number| number.to_string()));
    let fix = "ulimit -n 65536";
    if limit.is_below(DESCRIPTORS_MIN) {
        return check.fail("a worker with a few peers needs more", fix);
    }
    if limit.is_below(DESCRIPTORS_ENOUGH) {
        return check.warn("a worker needs some for every rank it talks to", fix);
    }
    check
}

fn processes(kernel: &Kernel, cgroup: &Cgroup) -> Check {
    let limit = kernel.limit("Max processes").unwrap_or(Limit::None);
    let lowest = match (limit, cgroup.processes_max) {
        (Limit::At(own), Some(group)) => Limit::At(own.min(group)),
        (Limit::None, Some(group)) => Limit::At(group),
        (own, None) => own,
    };
    let check = Check::ok("processes", told(lowest, |number| number.to_string()));
    let fix = "ulimit -u 4096, and pids.max of the group";
    if lowest.is_below(PROCESSES_MIN) {
        return check.fail("the threads of a job do not fit", fix);
    }
    if lowest.is_below(PROCESSES_ENOUGH) {
        return check.warn("large jobs do not fit", fix);
    }
    check
}

fn file_size(kernel: &Kernel, cgroup: &Cgroup) -> Check {
    let limit = kernel.limit("Max file size").unwrap_or(Limit::None);
    let found = format!(
        "files of {}",
        told(limit, bytes).replace("no limit", "any size")
    );
    if limit.is_below(MEMORY_ENOUGH) {
        let cost = "arenas are files to the kernel, so larger ones are refused";
        return Check::ok("input and output", found).fail(cost, "ulimit -f unlimited");
    }
    if cgroup.io_limited {
        let check = Check::ok("input and output", found + ", limited by the group");
        let fix = "cat io.max of the group, and raise it";
        return check.warn("sources and spilled state are read and written slowly", fix);
    }
    Check::ok("input and output", found)
}

fn locked_memory(kernel: &Kernel, topology: &Topology) -> Check {
    let limit = kernel.limit("Max locked memory").unwrap_or(Limit::None);
    let check = Check::ok("locked memory", told(limit, bytes));
    if topology.rdma.is_empty() || !limit.is_below(LOCKED_ENOUGH) {
        return check;
    }
    let cost = "RDMA registers arenas by locking them, so TCP is used instead";
    check.fail(
        cost,
        "ulimit -l unlimited (limits.conf: * - memlock unlimited; docker run --ulimit memlock=-1)",
    )
}

fn rdma(kernel: &Kernel, topology: &Topology) -> Check {
    const LIBRARY: &str = "libibverbs.so.1";
    let devices = &topology.rdma;
    if devices.is_empty() {
        return Check::ok("RDMA", "no devices, so other machines are reached by TCP");
    }
    let names: Vec<&str> = devices.iter().map(|device| &device.name[..]).collect();
    let check = Check::ok("RDMA", names.join(", "));
    if !has_library(kernel, LIBRARY) {
        let cost = format!("there is no {LIBRARY}, so TCP is used instead");
        return check.fail(cost, "apt-get install libibverbs1 ibverbs-providers");
    }
    let active = |state: &str| state.ends_with("ACTIVE");
    let ports = devices.iter().flat_map(|device| &device.ports);
    if !ports.into_iter().any(|port| active(&port.state)) {
        let cost = "no port is active, so TCP is used instead";
        return check.fail(cost, "rdma link show # and set its interface up");
    }
    check
}

/// Whether the loader would find a library: in its cache, or in the usual folders.
fn has_library(kernel: &Kernel, name: &str) -> bool {
    let ended = format!("{name}\0");
    let cache = kernel.bytes("etc/ld.so.cache").unwrap_or_default();
    let folders = [
        "lib",
        "lib64",
        "usr/lib",
        "usr/lib64",
        "usr/local/lib",
        "usr/lib/x86_64-linux-gnu",
        "usr/lib/aarch64-linux-gnu",
    ];
    cache
        .windows(ended.len())
        .any(|window| window == ended.as_bytes())
        || folders
            .iter()
            .any(|folder| kernel.exists(&format!("{folder}/{name}")))
}

/// Said because everybody who has run other engines in containers looks here first.
fn shm_folder() -> Check {
    Check::ok("/dev/shm", "not used, whatever its size")
}

fn socket_buffers(kernel: &Kernel) -> Check {
    let most = |file: &str| -> Option<u64> {
        let text = kernel.text(&format!("proc/sys/net/ipv4/{file}"))?;
        text.split_whitespace().nth(2)?.parse().ok()
    };
    let (Some(read), Some(write)) = (most("tcp_rmem"), most("tcp_wmem")) else {
        return Check::ok("TCP buffers", "unknown");
    };
    let check = Check::ok(
        "TCP buffers",
        format!("up to {} in, {} out", bytes(read), bytes(write)),
    );
    if read.min(write) < SOCKET_BYTES_ENOUGH {
        let cost = "fast networks are not filled";
        let fix = "sysctl -w net.ipv4.tcp_rmem='4096 131072 16777216' net.ipv4.tcp_wmem='4096 65536 16777216'";
        return check.warn(cost, fix);
    }
    check
}

fn clock(kernel: &Kernel) -> Check {
    let folder = "sys/devices/system/clocksource/clocksource0";
    let Some(source) = kernel.text(&format!("{folder}/current_clocksource")) else {
        return Check::ok("clock", "unknown");
    };
    let check = Check::ok("clock", &source[..]);
    // Those that are read without a system call.
    if matches!(
        source.as_str(),
        "tsc" | "kvm-clock" | "arch_sys_counter" | "hyperv_clocksource_tsc_page"
    ) {
        return check;
    }
    let cost = "every look at the clock is a system call or worse";
    check.warn(cost, format!("echo tsc > /{folder}/current_clocksource"))
}

fn governor(kernel: &Kernel) -> Check {
    let online = kernel.list("sys/devices/system/cpu/online");
    let mut governors: Vec<String> = online
        .iter()
        .filter_map(|core| {
            kernel.text(&format!(
                "sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"
            ))
        })
        .collect();
    governors.sort_unstable();
    governors.dedup();
    if governors.is_empty() {
        return Check::ok("frequency", "not ours to set");
    }
    let check = Check::ok("frequency", governors.join(", "));
    if governors == ["performance"] {
        return check;
    }
    let cost = "a core that has waited is slow at first";
    check.warn(cost, "cpupower frequency-set -g performance")
}

fn turbo(kernel: &Kernel) -> Check {
    let (intel, other) = (
        "sys/devices/system/cpu/intel_pstate/no_turbo",
        "sys/devices/system/cpu/cpufreq/boost",
    );
    let (on, fix) = match (kernel.number::<u32>(intel), kernel.number::<u32>(other)) {
        (Some(off), _) => (off == 0, format!("echo 0 > /{intel}")),
        (None, Some(on)) => (on != 0, format!("echo 1 > /{other}")),
        (None, None) => return Check::ok("turbo", "not ours to set"),
    };
    if on {
        return Check::ok("turbo", "on");
    }
    Check::ok("turbo", "off").warn("cores stay below the speed they could have", fix)
}

fn ptrace(kernel: &Kernel) -> Check {
    let scope: Option<u32> = kernel.number("proc/sys/kernel/yama/ptrace_scope");
    let scope = scope.map_or("not restricted".to_owned(), |scope| {
        format!("ptrace_scope {scope}")
    });
    Check::ok(
        "ptrace",
        scope + ", not needed: memory is handed over, not read from outside",
    )
}

fn told(limit: Limit, number: impl Fn(u64) -> String) -> String {
    match limit {
        Limit::None => "no limit".to_owned(),
        Limit::At(limit) => number(limit),
    }
}
