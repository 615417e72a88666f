//! `updraft topology`: what the machine is made of, and what is near to what.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::kernel::{Arguments, Cgroup, Kernel, bytes, list, numbers};

/// Prints the machine.
pub(crate) fn run(arguments: &Arguments) {
    let topology = Topology::of(&arguments.kernel());
    arguments.tell(|| topology.text(), || topology.json());
}

/// What a machine is made of, by the kernel's files. A *processor* is what the kernel schedules on: a core, or
/// one of the threads of a core.
#[derive(Debug)]
pub(crate) struct Topology {
    model: String,
    processors: Vec<Processor>,
    pub(crate) nodes: Vec<Node>,
    caches: Vec<Cache>,
    interfaces: Vec<Interface>,
    pub(crate) rdma: Vec<Rdma>,
    cgroup: Cgroup,
    allowed: Vec<usize>,
}

#[derive(Debug)]
struct Processor {
    number: usize,
    package: usize,
    /// All processors of the same core, this one among them.
    siblings: Vec<usize>,
}

/// Memory, and the processors that are near to it.
#[derive(Debug)]
pub(crate) struct Node {
    number: usize,
    memory_bytes: u64,
    free_bytes: u64,
    processors: Vec<usize>,
    /// To each node, 10 being its own.
    distances: Vec<u32>,
}

/// Caches that are alike, each shared by the processors of one group.
#[derive(Debug)]
struct Cache {
    level: u32,
    kind: String,
    bytes: u64,
    line_bytes: u64,
    groups: Vec<Vec<usize>>,
}

#[derive(Debug)]
struct Interface {
    name: String,
    driver: Option<String>,
    megabits: Option<u64>,
    node: Option<usize>,
    mtu: Option<u64>,
    up: bool,
}

/// An RDMA device.
#[derive(Debug)]
pub(crate) struct Rdma {
    pub(crate) name: String,
    node: Option<usize>,
    pub(crate) ports: Vec<Port>,
}

/// A port of an RDMA device.
#[derive(Debug)]
pub(crate) struct Port {
    number: usize,
    /// Such as `4: ACTIVE`.
    pub(crate) state: String,
    rate: String,
    /// `InfiniBand` or `Ethernet`.
    layer: String,
}

impl Topology {
    pub(crate) fn of(kernel: &Kernel) -> Self {
        let processors = processors(kernel);
        let allowed = kernel.value("proc/self/status", "Cpus_allowed_list");
        Self {
            model: kernel
                .value("proc/cpuinfo", "model name")
                .unwrap_or_else(|| "processor of unknown model".to_owned()),
            nodes: nodes(kernel, &processors),
            caches: caches(kernel, &processors),
            interfaces: interfaces(kernel),
            rdma: rdma(kernel),
            cgroup: Cgroup::of(kernel),
            allowed: allowed.map(|text| numbers(&text)).unwrap_or_default(),
            processors,
        }
    }

    /// Cores, each with the processors that share it.
    fn cores(&self) -> Vec<&[usize]> {
        let first = |processor: &&Processor| processor.siblings.first() == Some(&processor.number);
        let firsts = self.processors.iter().filter(first);
        firsts.map(|processor| &processor.siblings[..]).collect()
    }

    fn packages(&self) -> Vec<usize> {
        let mut packages: Vec<usize> = self.processors.iter().map(|one| one.package).collect();
        packages.sort_unstable();
        packages.dedup();
        packages
    }

    fn text(&self) -> String {
        let mut tree = Tree::default();
        let (packages, cores) = (self.packages(), self.cores());
        tree.line(
            0,
            &format!(
                "{}: {}, {}, {}, {}",
                self.model,
                count(packages.len(), "socket"),
                count(cores.len(), "core"),
                count(self.processors.len(), "processor"),
                count(self.nodes.len(), "NUMA node"),
            ),
        );
        for node in &self.nodes {
            tree.line(1, &self.node_line(node));
            for core in self.cores_of(node) {
                tree.line(2, &self.core_line(core));
            }
        }
        tree.line(1, "caches");
        for cache in &self.caches {
            tree.line(2, &cache.line());
        }
        tree.line(1, "network");
        for interface in &self.interfaces {
            tree.line(2, &interface.line());
        }
        tree.line(
            1,
            if self.rdma.is_empty() {
                "RDMA: no devices"
            } else {
                "RDMA"
            },
        );
        for device in &self.rdma {
            tree.line(2, &device.line());
        }
        tree.line(1, &self.allowance());
        tree.text()
    }

    fn node_line(&self, node: &Node) -> String {
        let distances: Vec<String> = node.distances.iter().map(u32::to_string).collect();
        let mut line = format!(
            "NUMA node {}: {}, {} free, processors {}",
            node.number,
            bytes(node.memory_bytes),
            bytes(node.free_bytes),
            list(&node.processors),
        );
        if self.nodes.len() > 1 {
            let _ = write!(line, ", distances {}", distances.join(" "));
        }
        line
    }

    fn cores_of(&self, node: &Node) -> impl Iterator<Item = &[usize]> {
        let cores = self.cores().into_iter();
        cores.filter(|core| {
            core.first()
                .is_some_and(|first| node.processors.contains(first))
        })
    }

    fn core_line(&self, core: &[usize]) -> String {
        let package = self
            .processors
            .iter()
            .find(|one| core.contains(&one.number))
            .map_or(0, |one| one.package);
        match core {
            [one] => format!("core {one}, socket {package}"),
            many => format!("core {}, socket {package}: threads {}", many[0], list(many)),
        }
    }

    /// What this process may use of it.
    fn allowance(&self) -> String {
        let mut line = format!("this process may use processors {}", list(&self.allowed));
        let Cgroup {
            processors_max,
            memory_bytes_max,
            cores,
            ..
        } = &self.cgroup;
        if !cores.is_empty() {
            let _ = write!(line, ", cpuset {}", list(cores));
        }
        if let Some(processors) = processors_max {
            let _ = write!(line, ", the time of {processors:.2} processors");
        }
        if let Some(limit) = memory_bytes_max {
            let _ = write!(line, ", {} of memory", bytes(*limit));
        }
        line
    }

    fn json(&self) -> Value {
        let nodes = self.nodes.iter().map(|node| {
            json!({
                "node": node.number,
                "memory_bytes": node.memory_bytes,
                "free_bytes": node.free_bytes,
                "processors": node.processors,
                "distances": node.distances,
            })
        });
        let cores = self.cores().into_iter().map(|core| {
            let of_core = |one: &&Processor| core.contains(&one.number);
            let package = self.processors.iter().find(of_core).map(|one| one.package);
            json!({ "core": core[0], "socket": package, "threads": core })
        });
        let caches = self.caches.iter().map(|cache| {
            json!({
                "level": cache.level,
                "kind": cache.kind,
                "bytes": cache.bytes,
                "line_bytes": cache.line_bytes,
                "shared_by": cache.groups,
            })
        });
        let interfaces = self.interfaces.iter().map(|interface| {
            json!({
                "name": interface.name,
                "driver": interface.driver,
                "megabits": interface.megabits,
                "node": interface.node,
                "mtu": interface.mtu,
                "up": interface.up,
            })
        });
        let rdma = self.rdma.iter().map(|device| {
            let ports = device.ports.iter().map(|port| {
                json!({
                    "port": port.number,
                    "state": port.state,
                    "rate": port.rate,
                    "link_layer": port.layer,
                })
            });
            json!({
                "name": device.name,
                "node": device.node,
                "ports": ports.collect::<Vec<_>>(),
            })
        });
        json!({
            "model": self.model,
            "sockets": self.packages().len(),
            "processors": self.processors.len(),
            "cores": cores.collect::<Vec<_>>(),
            "nodes": nodes.collect::<Vec<_>>(),
            "caches": caches.collect::<Vec<_>>(),
            "network": interfaces.collect::<Vec<_>>(),
            "rdma": rdma.collect::<Vec<_>>(),
            "allowed": {
                "processors": self.allowed,
                "cpuset": self.cgroup.cores,
                "cpuset_nodes": self.cgroup.nodes,
                "processor_time": self.cgroup.processors_max,
                "memory_bytes": self.cgroup.memory_bytes_max,
            },
        })
    }
}

impl Cache {
    fn line(&self) -> String {
        let groups: Vec<String> = self.groups.iter().map(|group| list(group)).collect();
        let kind = match self.kind.as_str() {
            "Data" => "d",
            "Instruction" => "i",
            _ => "",
        };
        let shared = if self.groups.iter().all(|group| group.len() == 1) {
            format!("{} caches, one for each processor", self.groups.len())
        } else {
            format!("shared by processors {}", groups.join(" | "))
        };
        format!(
            "L{}{kind}: {} each, lines of {} B, {shared}",
            self.level,
            bytes(self.bytes),
            self.line_bytes
        )
    }
}

impl Interface {
    fn line(&self) -> String {
        let mut line = format!("{}: {}", self.name, if self.up { "up" } else { "down" });
        if let Some(megabits) = self.megabits {
            let _ = match megabits {
                1000.. => write!(line, ", {} Gbit/s", megabits as f64 / 1e3),
                _ => write!(line, ", {megabits} Mbit/s"),
            };
        }
        if let Some(mtu) = self.mtu {
            let _ = write!(line, ", MTU {mtu}");
        }
        if let Some(driver) = &self.driver {
            let _ = write!(line, ", driver {driver}");
        }
        if let Some(node) = self.node {
            let _ = write!(line, ", NUMA node {node}");
        }
        line
    }
}

impl Rdma {
    fn line(&self) -> String {
        let mut line = self.name.clone();
        if let Some(node) = self.node {
            let _ = write!(line, ", NUMA node {node}");
        }
        for port in &self.ports {
            let Port {
                number,
                state,
                rate,
                layer,
            } = port;
            let state = state.split_once(": ").map_or(&state[..], |(_, name)| name);
            let _ = write!(line, "; port {number}: {layer}, {state}, {rate}");
        }
        line
    }
}

fn processors(kernel: &Kernel) -> Vec<Processor> {
    let folder = "sys/devices/system/cpu";
    let online = kernel.list(&format!("{folder}/online"));
    let numbers = if online.is_empty() {
        kernel.numbered(folder, "cpu")
    } else {
        online
    };
    let processor = |number| {
        let at = |name: &str| format!("{folder}/cpu{number}/topology/{name}");
        let mut siblings = kernel.list(&at("thread_siblings_list"));
        if siblings.is_empty() {
            siblings.push(number);
        }
        Processor {
            number,
            package: kernel.number(&at("physical_package_id")).unwrap_or(0),
            siblings,
        }
    };
    numbers.into_iter().map(processor).collect()
}

fn nodes(kernel: &Kernel, processors: &[Processor]) -> Vec<Node> {
    let folder = "sys/devices/system/node";
    let node = |number| {
        let at = |name: &str| format!("{folder}/node{number}/{name}");
        let memory = |what: &str| {
            let key = format!("Node {number} {what}");
            kernel.kilobytes(&at("meminfo"), &key).unwrap_or(0)
        };
        let distances = kernel.text(&at("distance")).unwrap_or_default();
        Node {
            number,
            memory_bytes: memory("MemTotal"),
            free_bytes: memory("MemFree"),
            processors: kernel.list(&at("cpulist")),
            distances: distances
                .split_whitespace()
                .filter_map(|distance| distance.parse().ok())
                .collect(),
        }
    };
    let nodes: Vec<Node> = kernel
        .numbered(folder, "node")
        .into_iter()
        .map(node)
        .collect();
    if !nodes.is_empty() {
        return nodes;
    }
    // A kernel without NUMA: all memory is near to all processors.
    let memory = |key| kernel.kilobytes("proc/meminfo", key).unwrap_or(0);
    vec![Node {
        number: 0,
        memory_bytes: memory("MemTotal"),
        free_bytes: memory("MemFree"),
        processors: processors.iter().map(|one| one.number).collect(),
        distances: vec![10],
    }]
}

fn caches(kernel: &Kernel, processors: &[Processor]) -> Vec<Cache> {
    let mut caches: Vec<Cache> = Vec::new();
    for processor in processors {
        let folder = format!("sys/devices/system/cpu/cpu{}/cache", processor.number);
        for index in kernel.numbered(&folder, "index") {
            let at = |name: &str| format!("{folder}/index{index}/{name}");
            let (Some(level), Some(kind), Some(bytes)) = (
                kernel.number(&at("level")),
                kernel.text(&at("type")),
                kernel
                    .text(&at("size"))
                    .and_then(|size| crate::command::parse_bytes(&size).ok()),
            ) else {
                continue;
            };
            let group = kernel.list(&at("shared_cpu_list"));
            let alike = |cache: &&mut Cache| {
                (cache.level, &cache.kind, cache.bytes) == (level, &kind, bytes)
            };
            match caches.iter_mut().find(alike) {
                Some(cache) if cache.groups.contains(&group) => {}
                Some(cache) => cache.groups.push(group),
                None => caches.push(Cache {
                    level,
                    kind,
                    bytes,
                    line_bytes: kernel.number(&at("coherency_line_size")).unwrap_or(64),
                    groups: vec![group],
                }),
            }
        }
    }
    caches.sort_by_key(|cache| cache.level);
    caches
}

fn interfaces(kernel: &Kernel) -> Vec<Interface> {
    let folder = "sys/class/net";
    let interface = |name: String| {
        let at = |file: &str| format!("{folder}/{name}/{file}");
        Interface {
            driver: kernel.link(&at("device/driver")),
            megabits: kernel.number(&at("speed")),
            node: kernel.number(&at("device/numa_node")),
            mtu: kernel.number(&at("mtu")),
            // The loopback says "unknown", and is up.
            up: kernel
                .text(&at("operstate"))
                .is_some_and(|state| state != "down"),
            name,
        }
    };
    let names = kernel.names(folder).into_iter();
    // Files such as `bonding_masters` are no interfaces.
    let names = names.filter(|name| kernel.exists(&format!("{folder}/{name}/operstate")));
    names.map(interface).collect()
}

fn rdma(kernel: &Kernel) -> Vec<Rdma> {
    let folder = "sys/class/infiniband";
    let device = |name: String| {
        let ports = format!("{folder}/{name}/ports");
        let port = |number| {
            let say = |file: &str| {
                let text = kernel.text(&format!("{ports}/{number}/{file}"));
                text.unwrap_or_else(|| "unknown".to_owned())
            };
            Port {
                number,
                state: say("state"),
                rate: say("rate"),
                layer: say("link_layer"),
            }
        };
        Rdma {
            node: kernel.number(&format!("{folder}/{name}/device/numa_node")),
            ports: kernel.numbered(&ports, "").into_iter().map(port).collect(),
            name,
        }
    };
    kernel.names(folder).into_iter().map(device).collect()
}

/// Lines, each with its depth, drawn as a tree.
#[derive(Default)]
struct Tree(Vec<(usize, String)>);

impl Tree {
    fn line(&mut self, depth: usize, text: &str) {
        self.0.push((depth, text.to_owned()));
    }

    fn text(&self) -> String {
        let mut drawn = String::new();
        for (at, (depth, text)) in self.0.iter().enumerate() {
            for level in 1..=*depth {
                // Whether something else hangs from the same branch further down.
                let below = self.0[at + 1..].iter().map(|(depth, _)| *depth);
                let goes_on = below
                    .take_while(|&depth| depth >= level)
                    .any(|depth| depth == level);
                drawn.push_str(match (level == *depth, goes_on) {
                    (true, true) => "├── ",
                    (true, false) => "└── ",
                    (false, true) => "│   ",
                    (false, false) => "    ",
                });
            }
            drawn.push_str(text);
            drawn.push('\n');
        }
        drawn
    }
}

/// `1 core`, `2 cores`.
fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_drawn_as_far_as_something_hangs_from_them() {
        let mut tree = Tree::default();
        for (depth, text) in [(0, "a"), (1, "b"), (2, "c"), (2, "d"), (1, "e"), (2, "f")] {
            tree.line(depth, text);
        }
        let drawn = "a\n├── b\n│   ├── c\n│   └── d\n└── e\n    └── f\n";
        assert_eq!(tree.text(), drawn);
    }
}
