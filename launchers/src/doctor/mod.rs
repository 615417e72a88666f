//! `updraft doctor`: what of this machine keeps a job from running, or from running fast, and how to mend it.
//!
//! [`files`] judges what the kernel's files say, and [`trials`] tries what a job does, once, as the job does it.

mod files;
mod trials;

use serde_json::{Value, json};

use crate::kernel::Arguments;

/// Examines and prints. The code is 1 when something fails.
pub(crate) fn run(arguments: &Arguments) -> u8 {
    let kernel = arguments.kernel();
    let mut checks = files::examine(&kernel);
    if kernel.is_real() {
        checks.extend(trials::examine());
    }
    arguments.tell(|| text(&checks), || json(&checks));
    u8::from(number(&checks, Verdict::Fail) > 0)
}

/// What was found about one thing.
#[derive(Debug)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    /// How it is.
    found: String,
    /// What that costs, unless it is well.
    cost: String,
    /// The command that mends it, unless it is well.
    fix: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// Jobs run, but slower or with less than they could.
    Warn,
    /// Some jobs do not run.
    Fail,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            cost: String::new(),
            fix: String::new(),
        }
    }

    fn warn(self, cost: impl Into<String>, fix: impl Into<String>) -> Self {
        self.judged(Verdict::Warn, cost.into(), fix.into())
    }

    fn fail(self, cost: impl Into<String>, fix: impl Into<String>) -> Self {
        self.judged(Verdict::Fail, cost.into(), fix.into())
    }

    fn judged(self, verdict: Verdict, cost: String, fix: String) -> Self {
        Self {
            verdict,
            cost,
            fix,
            ..self
        }
    }

    fn line(&self) -> String {
        let (verdict, name, found) = (self.verdict.name(), self.name, &self.found);
        let mut line = format!("{verdict:<5} {name:<20} {found}");
        if self.verdict != Verdict::Ok {
            line += &format!(": {}; fix: {}", self.cost, self.fix);
        }
        line
    }
}

fn text(checks: &[Check]) -> String {
    let mut text: String = checks.iter().map(|check| check.line() + "\n").collect();
    let [warnings, failures] =
        [Verdict::Warn, Verdict::Fail].map(|verdict| number(checks, verdict));
    let sum = checks.len();
    text += &format!("{sum} checks, {warnings} to be warned of, {failures} failed\n");
    text
}

fn json(checks: &[Check]) -> Value {
    let all = checks.iter().map(|check| {
        json!({
            "name": check.name,
            "verdict": check.verdict.name(),
            "found": check.found,
            "cost": check.cost,
            "fix": check.fix,
        })
    });
    json!({
        "ok": number(checks, Verdict::Fail) == 0,
        "warnings": number(checks, Verdict::Warn),
        "failures": number(checks, Verdict::Fail),
        "checks": all.collect::<Vec<_>>(),
    })
}

fn number(checks: &[Check], verdict: Verdict) -> usize {
    checks
        .iter()
        .filter(|check| check.verdict == verdict)
        .count()
}
