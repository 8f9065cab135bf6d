//! `shoal plan`: who runs where, one line for each, for `scripts/cluster`. Called by `main`; reads the configuration alone, as
//! certificates and model files are on the hosts. [`stages`] is `--stages`, which reads what models are here.

use std::path::Path;

use shoal_common::config::{Config, Host};
use shoal_common::ids::Name;

use crate::check::replicas::{self, Planned, ReplicaFault, Takes};
use crate::roles::ROUTER;

/// Why a script could not go by the plan.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("the configuration names no worker: add a [[worker]]")]
    NoWorkers,
    #[error("a worker cannot be called `{0}` here: its certificate would take the place of the router's")]
    NamedLikeTheRouter(Name),
    #[error("{0:?} holds a character that no line can hold: rename it")]
    Unprintable(String),
    #[error(transparent)]
    Replica(#[from] ReplicaFault),
}

/// The lines, fields apart by tabs, none of them empty. `here` is this machine's name.
pub(crate) fn lines(config: &Config, here: &str) -> Result<String, PlanError> {
    if config.workers.is_empty() {
        return Err(PlanError::NoWorkers);
    }
    let cluster = &config.cluster;
    let drain = cluster.timers.drain.as_millis().to_string();
    let mut text = line(&["cluster", cluster.name.as_str(), &config.hosts.dir, &path(cluster.pki.as_deref()), &drain])?;
    let router = &config.router;
    let url = format!("http://{}", crate::dev::reachable(router.listen));
    let host = place(&config.hosts.router, here);
    text.push_str(&line(&["router", ROUTER, ROUTER, host, &url, &router.quic.to_string()])?);
    for (worker, host) in config.workers.iter().zip(&config.hosts.workers) {
        if worker.name.as_str() == ROUTER {
            return Err(PlanError::NamedLikeTheRouter(worker.name.clone()));
        }
        let weights = config.model(&worker.model).and_then(|model| model.files()).map(|(path, _)| path);
        let (name, file) = (worker.name.as_str(), worker.name.as_str().replace('/', "%2F"));
        let head = config.stage_of(&worker.name).map_or("-", |(replica, _)| replica.head().as_str());
        let (host, model) = (place(host, here), worker.model.as_str());
        text.push_str(&line(&["worker", name, &file, host, model, &path(weights), head])?);
    }
    Ok(text)
}

/// The stages of every replica, likewise.
pub(crate) fn stages(config: &Config) -> Result<String, PlanError> {
    let mut text = String::new();
    for replica in &config.replicas {
        for Planned { stage, layers, takes } in replicas::plan(config, replica)?.stages {
            let layers = layers.map_or_else(|| "-".to_owned(), |range| format!("{}-{}", range.begin, range.end));
            let [weights, kv, share] = takes.map_or_else(
                || ["-", "-", "-"].map(str::to_owned),
                |Takes { weights, kv, share }| [weights, kv, share].map(|number| number.to_string()),
            );
            let (name, worker) = (replica.name.as_str(), stage.worker.as_str());
            text.push_str(&line(&["stage", name, worker, &layers, &weights, &kv, &share])?);
        }
    }
    Ok(text)
}

/// `.` for this machine, by whatever name; else what `ssh` takes.
fn place<'a>(host: &'a Host, here: &str) -> &'a str {
    let is_here = |name: &str| {
        name.eq_ignore_ascii_case(here) || here.split('.').next().is_some_and(|short| name.eq_ignore_ascii_case(short))
    };
    match host {
        Host::Ssh(destination) if !is_here(destination.as_str()) => destination.as_str(),
        Host::Here | Host::Ssh(_) => ".",
    }
}

fn path(path: Option<&Path>) -> String {
    path.map_or_else(|| "-".to_owned(), |path| path.display().to_string())
}

fn line(fields: &[&str]) -> Result<String, PlanError> {
    match fields.iter().find(|field| field.is_empty() || field.chars().any(char::is_control)) {
        Some(bad) => Err(PlanError::Unprintable((*bad).to_owned())),
        None => Ok(fields.join("\t") + "\n"),
    }
}

#[cfg(test)]
mod tests {
    use shoal_common::config::{Overrides, Scope, load};

    use super::*;

    fn plan_of(text: &str) -> anyhow::Result<String> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("cluster.toml");
        std::fs::write(&file, text)?;
        let config = load(Some(&file), &Overrides { scope: Scope::Plan, ..Overrides::default() })?;
        Ok(lines(&config, "Head.example.net")?.replace(&dir.path().display().to_string(), "DIR"))
    }

    const MODELS: &str = "[[model]]\nname = \"m\"\npath = \"w.gguf\"\n";

    #[test]
    fn the_plan_is_a_line_for_each_process() {
        let text = format!(
            "[cluster]\nname = \"reef\"\npki = \"pki\"\nremote_dir = \"/srv/shoal\"\n[router]\nhost = \"head\"\nlisten = \
             \"127.0.0.1:81\"\nquic = \"10.0.0.1:9\"\n{MODELS}[[worker]]\nname = \"org/a\"\nhost = \"ops@gpu1\"\n[[worker]]\nname \
             = \"b\"\nhost = \"head.EXAMPLE.net\"\n"
        );
        assert_eq!(
            plan_of(&text).expect("a plan"),
            "cluster\treef\t/srv/shoal\tDIR/pki\t30000\nrouter\trouter\trouter\t.\thttp://127.0.0.1:81\t10.0.0.1:9\nworker\torg/a\t\
             org%2Fa\tops@gpu1\tm\tDIR/w.gguf\t-\nworker\tb\tb\t.\tm\tDIR/w.gguf\t-\n"
        );
    }

    #[test]
    fn what_is_absent_is_a_dash_and_an_address_of_all_is_asked_on_loopback() {
        let text = format!(
            "[router]\nlisten = \"0.0.0.0:80\"\ninsecure = true\n{}[[worker]]\nname = \"a\"\n",
            "[[model]]\nname = \"m\"\nengine = \"scripted\"\n"
        );
        let plan = plan_of(&text).expect("a plan");
        assert!(plan.starts_with("cluster\tshoal\t~/.local/share/shoal/cluster-shoal\t-\t30000\n"), "{plan}");
        assert!(plan.contains("\thttp://127.0.0.1:80\t") && plan.ends_with("worker\ta\ta\t.\tm\t-\t-\n"), "{plan}");
    }

    #[test]
    fn the_stages_of_a_split_model_have_a_line_each_with_what_they_take_where_that_is_known() {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/tiny/gguf/tiny-q8_0.gguf");
        let of = |model: &str, layers: [&str; 2]| {
            let dir = tempfile::tempdir().expect("a directory");
            let worker = |name, speed| {
                let room = "kv_tokens = 16\nmemory = 180000\nstage_listen = \"127.0.0.1:9\"\n";
                format!("[[worker]]\nname = \"{name}\"\nspeed = {speed}\n{room}")
            };
            let both = format!("{{ worker = \"a\"{} }}, {{ worker = \"b\"{} }}", layers[0], layers[1]);
            let text = format!(
                "[[model]]\nname = \"m\"\npath = \"{model}\"\n{}{}[[replica]]\nname = \"r\"\nstages = [{both}]\n",
                worker("a", 1),
                worker("b", 2)
            );
            let file = dir.path().join("cluster.toml");
            std::fs::write(&file, text).expect("the file");
            let scope = Overrides { scope: Scope::Plan, ..Overrides::default() };
            stages(&load(Some(&file), &scope).expect("nothing is wrong")).expect("a plan")
        };
        let written = [", layers = [0, 1]", ", layers = [1, 4]"];
        let here = of(model, written);
        let fields: Vec<Vec<&str>> = here.lines().map(|line| line.split('\t').collect()).collect();
        assert_eq!(
            (fields[0][..4].join(" "), fields[1][..4].join(" ")),
            ("stage r a 0-1".into(), "stage r b 1-4".into())
        );
        let number = |stage: usize, field: usize| fields[stage][field].parse::<u64>().expect("a number");
        assert_eq!([number(0, 5), number(1, 5)], [16 * 128, 3 * 16 * 128], "KV of one layer, and of three");
        assert_eq!(number(0, 6) + number(1, 6), 100);
        let time = |stage: usize, speed| number(stage, 4) as f64 / speed;
        let share: f64 = 100.0 * time(1, 2.0) / (time(0, 1.0) + time(1, 2.0));
        assert_eq!(number(1, 6), share.round() as u64);
        assert!(of("elsewhere.gguf", written).ends_with("stage\tr\tb\t1-4\t-\t-\t-\n"));
        assert!(of("elsewhere.gguf", ["", ""]).starts_with("stage\tr\ta\t-\t-\t-\t-\n"));
        let planned = of(model, ["", ""]);
        assert!(planned.contains("stage\tr\ta\t0-") && planned.contains("-4\t"), "{planned}");
    }

    #[test]
    fn what_a_script_could_not_go_by_is_refused() {
        let worker = |name: &str| format!("{MODELS}[[worker]]\nname = \"{name}\"\n");
        for bad in [MODELS.to_owned(), worker("router"), worker("a").replace("w.gguf", "w\\t.gguf")] {
            plan_of(&bad).expect_err(&bad);
        }
    }
}
