//! A graph as people and other programs read it.

use std::fmt::Write;

use super::{Graph, Instances, Located, Placement, Schedule, Vertex};
use crate::tset::BETWEEN;

/// A graph as it is drawn: tasks, and the edges between them.
struct Drawing<'g> {
    tasks: Vec<Drawn<'g>>,
    edges: Vec<Edge<'g>>,
}

/// A task.
struct Drawn<'g> {
    number: usize,
    vertex: &'g Vertex,
    /// What is fused in it, without the exchange at its end.
    operators: Vec<&'g str>,
}

/// An edge, with how records cross it.
struct Edge<'g> {
    from: usize,
    to: usize,
    /// Which of the inputs of `to` it is, and what the program calls that.
    input: usize,
    input_name: Option<&'g str>,
    /// The output of `from`, if that has several.
    output: Option<&'g str>,
    exchange: &'g str,
    /// Whether records stay where they are: see [`Graph::is_in_place`].
    in_place: bool,
}

impl<'g> Drawing<'g> {
    fn of(graph: &'g Graph, schedule: Option<&Schedule>) -> Self {
        let vertices = || graph.vertices.iter().enumerate();
        let tasks = vertices().filter(|(_, vertex)| vertex.node.outlet.is_none());
        let task = |(number, vertex): (usize, &'g Vertex)| {
            let mut operators: Vec<_> = vertex.node.name.split(BETWEEN).collect();
            if vertex.readers.is_some() && operators.len() > 1 {
                operators.pop();
            }
            Drawn {
                number,
                vertex,
                operators,
            }
        };
        let mut edges = Vec::new();
        for (to, vertex) in vertices().filter(|(_, vertex)| vertex.node.outlet.is_none()) {
            for (input, &edge) in vertex.inputs.iter().enumerate() {
                let sender = &graph.vertices[edge];
                let (output, exchange) = match sender.node.name.rsplit_once(BETWEEN) {
                    Some((output, exchange)) => (output, exchange),
                    None => ("", ""),
                };
                let is_outlet = sender.node.outlet.is_some();
                edges.push(Edge {
                    from: if is_outlet { sender.inputs[0] } else { edge },
                    to,
                    input,
                    input_name: vertex.node.input_names.get(input).map(String::as_str),
                    output: is_outlet.then_some(output),
                    exchange,
                    in_place: graph.is_in_place(edge, schedule),
                });
            }
        }
        Self {
            tasks: tasks.map(task).collect(),
            edges,
        }
    }
}

impl Edge<'_> {
    fn label(&self) -> String {
        let output = self.output.map(|output| format!("{output}: "));
        let in_place = if self.in_place { ", in place" } else { "" };
        let input = self.input_name.map(|input| format!(" > {input}"));
        let [output, input] = [output, input].map(Option::unwrap_or_default);
        format!("{output}{}{in_place}{input}", self.exchange)
    }
}

/// How many instances a task has, and where if that is known.
fn instances_text(placement: &Placement, schedule: Option<&Schedule>) -> String {
    let placed = schedule.map(|schedule| schedule.instances(placement));
    let ranks = match &placed {
        Some(Instances::Listed(listed)) => format!(", on {}", listed.text()),
        Some(Instances::Even { number, size }) if number < size => {
            let ranks = (0..*number).map(|instance| super::even(instance, *number, *size));
            let ranks: Vec<_> = ranks.map(|rank| rank.to_string()).collect();
            match ranks.len() {
                0..=16 => format!(", on ranks {}", ranks.join(" ")),
                _ => ", spread over the ranks".to_owned(),
            }
        }
        _ => ", spread over the ranks".to_owned(),
    };
    match placement {
        Placement::Everywhere => "one instance on each rank".to_owned(),
        Placement::OnePerProcess => "one instance in each process".to_owned(),
        Placement::Located(Located { instances, .. }) => {
            let number = placed.map(|placed| placed.number()).or(*instances);
            let number = number.map_or("as many".to_owned(), |number| number.to_string());
            format!("{number} instances{ranks}")
        }
        Placement::Instances(1) => format!("one instance{}", ranks.replace("ranks", "rank")),
        Placement::Instances(number) => format!("{number} instances{ranks}"),
        Placement::Task(task) => format!("{}: {} instances{ranks}", task.name, task.instances),
    }
}

/// What is done, where, and what is fused, in lines for people.
pub(super) fn explain(graph: &Graph, schedule: Option<&Schedule>) -> String {
    let drawing = Drawing::of(graph, schedule);
    let mut text = String::new();
    for Drawn {
        number,
        vertex,
        operators,
    } in &drawing.tasks
    {
        let fused = operators.join(BETWEEN);
        let instances = instances_text(&vertex.node.placement, schedule);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "task {number}: {fused} ({instances})");
        if let Some(read) = schedule.and_then(|schedule| schedule.read(&vertex.node.placement)) {
            let _ = write!(
                text,
                "    reads {} bytes on the hosts that have them",
                read.here
            );
            for ((from, to), bytes) in &read.from_others {
                let _ = write!(text, ", {bytes} of {from} on {to}");
            }
            text.push('\n');
        }
        for edge in drawing.edges.iter().filter(|edge| edge.from == *number) {
            let _ = writeln!(text, "    -> task {}, by {}", edge.to, edge.label());
        }
    }
    text
}

/// The graph in the language of Graphviz.
pub(super) fn dot(graph: &Graph, schedule: Option<&Schedule>) -> String {
    let drawing = Drawing::of(graph, schedule);
    let mut text = "digraph job {\n    node [shape=box];\n".to_owned();
    for task in &drawing.tasks {
        let fused = quoted(&task.operators.join(BETWEEN));
        let instances = quoted(&instances_text(&task.vertex.node.placement, schedule));
        let _ = writeln!(
            text,
            "    t{} [label=\"{fused}\\n{instances}\"];",
            task.number
        );
    }
    for edge in &drawing.edges {
        let label = quoted(&edge.label());
        let _ = writeln!(
            text,
            "    t{} -> t{} [label=\"{label}\"];",
            edge.from, edge.to
        );
    }
    text.push_str("}\n");
    text
}

/// A text between quotes of Graphviz.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The graph in the language of Mermaid.
pub(super) fn mermaid(graph: &Graph, schedule: Option<&Schedule>) -> String {
    let drawing = Drawing::of(graph, schedule);
    let mut text = "flowchart TD\n".to_owned();
    for task in &drawing.tasks {
        let fused = entities(&task.operators.join(BETWEEN));
        let instances = entities(&instances_text(&task.vertex.node.placement, schedule));
        let _ = writeln!(text, "    t{}[\"{fused}<br/>{instances}\"]", task.number);
    }
    for edge in &drawing.edges {
        let label = entities(&edge.label());
        let _ = match &label[..] {
            "" => writeln!(text, "    t{} --> t{}", edge.from, edge.to),
            label => writeln!(text, "    t{} -->|\"{label}\"| t{}", edge.from, edge.to),
        };
    }
    text
}

/// A text between quotes of Mermaid, which knows the characters that mean something as entities.
fn entities(text: &str) -> String {
    let mut safe = String::new();
    for character in text.chars() {
        match character {
            '"' | '<' | '>' | '&' | '#' | '|' | '\n' => {
                let _ = write!(safe, "#{};", u32::from(character));
            }
            _ => safe.push(character),
        }
    }
    safe
}

/// The graph as JSON.
pub(super) fn json(graph: &Graph, schedule: Option<&Schedule>) -> String {
    let drawing = Drawing::of(graph, schedule);
    let list = |texts: Vec<String>| texts.join(",");
    let task = |task: &Drawn<'_>| {
        let placement = &task.vertex.node.placement;
        let name = match placement {
            Placement::Task(task) => json_text(&task.name),
            _ => "null".to_owned(),
        };
        let (kind, number) = match placement {
            Placement::Everywhere => ("each rank", None),
            Placement::OnePerProcess => ("each process", None),
            Placement::Instances(number) => ("scheduled", Some(*number)),
            Placement::Located(Located { instances, .. }) => ("scheduled", *instances),
            Placement::Task(task) => ("scheduled", Some(task.instances)),
        };
        let number = number.map_or("null".to_owned(), |number| number.to_string());
        let ranks = schedule.map_or("null".to_owned(), |schedule| {
            let instances = schedule.instances(placement);
            let ranks =
                (0..instances.number()).map(|instance| instances.rank_of(instance).to_string());
            format!("[{}]", list(ranks.collect()))
        });
        format!(
            "{{\"number\":{},\"name\":{name},\"operators\":[{}],\"placement\":\"{kind}\",\"instances\":{number},\"ranks\":{ranks}}}",
            task.number,
            list(
                task.operators
                    .iter()
                    .map(|operator| json_text(operator))
                    .collect()
            ),
        )
    };
    let edge = |edge: &Edge<'_>| {
        format!(
            "{{\"from\":{},\"to\":{},\"input\":{},\"input_name\":{},\"output\":{},\"exchange\":{},\"in_place\":{}}}",
            edge.from,
            edge.to,
            edge.input,
            edge.input_name.map_or("null".to_owned(), json_text),
            edge.output.map_or("null".to_owned(), json_text),
            json_text(edge.exchange),
            edge.in_place,
        )
    };
    format!(
        "{{\"tasks\":[{}],\"edges\":[{}]}}",
        list(drawing.tasks.iter().map(task).collect()),
        list(drawing.edges.iter().map(edge).collect()),
    )
}

/// A string of JSON.
fn json_text(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\0'..='\u{1f}' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(character));
            }
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use crate::{GraphBuilder, collection, schedule::Task};

    #[test]
    fn inputs_and_outputs_are_drawn_by_their_names() {
        let mut graph = GraphBuilder::new();
        let mut split = graph.task(Task::new("split", 2), |_| ());
        let (even, odd) = (split.output::<u64>("even"), split.output::<u64>("odd"));
        let numbers = collection(vec![1u64, 2]).round_robin();
        split.input("num\"bers", numbers, move |_, n, out| {
            out.push(if n % 2 == 0 { even } else { odd }, n);
        });
        let split = split.done();
        let mut pairs = graph.task(Task::new("pairs", 1), |_| ());
        pairs.input("left", split.output(odd).gather(), |_, _, _| ());
        pairs.input("right", split.output(even).direct(), |_, _, _| ());
        let _ = pairs.done();
        let job = graph.job().unwrap();

        let edges = |text: String, arrow: &str| {
            let lines = text.lines().filter(|line| line.contains(arrow));
            lines.map(|line| line.trim().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(
            edges(job.explain(), "->"),
            [
                "-> task 1, by round_robin > num\"bers",
                "-> task 4, by odd: gather > left",
                "-> task 4, by even: direct > right"
            ]
        );
        assert_eq!(
            edges(job.to_dot(), "->"),
            [
                "t0 -> t1 [label=\"round_robin > num\\\"bers\"];",
                "t1 -> t4 [label=\"odd: gather > left\"];",
                "t1 -> t4 [label=\"even: direct > right\"];"
            ]
        );
        assert_eq!(
            edges(job.to_mermaid(), "-->"),
            [
                "t0 -->|\"round_robin #62; num#34;bers\"| t1",
                "t1 -->|\"odd: gather #62; left\"| t4",
                "t1 -->|\"even: direct #62; right\"| t4"
            ]
        );
        let json = job.to_json();
        for edge in [
            r#"{"from":0,"to":1,"input":0,"input_name":"num\"bers","output":null,"exchange":"round_robin","in_place":false}"#,
            r#"{"from":1,"to":4,"input":0,"input_name":"left","output":"odd","exchange":"gather","in_place":false}"#,
            r#"{"from":1,"to":4,"input":1,"input_name":"right","output":"even","exchange":"direct","in_place":false}"#,
        ] {
            assert!(json.contains(edge), "{edge} is not in {json}");
        }
    }

    #[test]
    fn a_job_is_drawn_with_its_exchanges_and_what_they_cannot_break() {
        let words = collection(vec!["a \"b\"".to_owned()])
            .map(|line| line.len() as u64)
            .named("len \"<&>\"\\")
            .round_robin()
            .as_task(Task::new("last", 3));
        let job = words.for_each(|_| ());
        assert_eq!(
            job.explain(),
            "task 0: collection of 1 > len \"<&>\"\\ (one instance on each rank)\n    \
             -> task 1, by round_robin\n\
             task 1: after round_robin > for_each (last: 3 instances, spread over the ranks)\n"
        );
        assert_eq!(
            job.to_dot(),
            "digraph job {\n    node [shape=box];\n    \
             t0 [label=\"collection of 1 > len \\\"<&>\\\"\\\\\\none instance on each rank\"];\n    \
             t1 [label=\"after round_robin > for_each\\nlast: 3 instances, spread over the ranks\"];\n    \
             t0 -> t1 [label=\"round_robin\"];\n}\n"
        );
        assert_eq!(
            job.to_mermaid(),
            "flowchart TD\n    \
             t0[\"collection of 1 #62; len #34;#60;#38;#62;#34;\\<br/>one instance on each rank\"]\n    \
             t1[\"after round_robin #62; for_each<br/>last: 3 instances, spread over the ranks\"]\n    \
             t0 -->|\"round_robin\"| t1\n"
        );
        assert_eq!(
            job.to_json(),
            "{\"tasks\":[\
             {\"number\":0,\"name\":null,\"operators\":[\"collection of 1\",\"len \\\"<&>\\\"\\\\\"],\
             \"placement\":\"each rank\",\"instances\":null,\"ranks\":null},\
             {\"number\":1,\"name\":\"last\",\"operators\":[\"after round_robin\",\"for_each\"],\
             \"placement\":\"scheduled\",\"instances\":3,\"ranks\":null}],\
             \"edges\":[{\"from\":0,\"to\":1,\"input\":0,\"input_name\":null,\"output\":null,\"exchange\":\"round_robin\",\"in_place\":false}]}"
        );
    }
}
