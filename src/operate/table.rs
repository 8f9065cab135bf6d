//! A router's answer as a table for people and as lines for scripts. What came out of a worker's files or off the network
//! cannot forge a line or drive a terminal: control characters become spaces.

use super::document::{Cluster, Incident, Stage, Worker};

const HEAD: [&str; 10] =
    ["WORKER", "STATE", "MODEL", "LAYERS", "RUNNING", "WAITING", "KV", "TOKENS/S", "ADDRESS", "LAST STEP"];

const STAGE_HEAD: [&str; 6] = ["STAGE OF", "WORKER", "STATE", "LAYERS", "BUSY", "ADDRESS"];

/// For people.
pub(super) fn table(cluster: &Cluster) -> String {
    let router = &cluster.router;
    let mut text = format!(
        "cluster {}: router {} ({}), up {}\n",
        plain(&cluster.name),
        plain(&router.build),
        plain(&router.protocol),
        duration(router.uptime_s)
    );
    if cluster.workers.is_empty() {
        text.push_str("no worker is connected\n");
    } else {
        let mut rows = vec![HEAD.map(str::to_owned)];
        rows.extend(cluster.workers.iter().map(row));
        text.push_str(&aligned(&rows));
    }
    text.push_str(&stages(cluster));
    // A worker that ended in order is no trouble.
    for incident in cluster.incidents.iter().filter(|incident| incident.cause != "shutdown") {
        text.push_str(&trouble(incident));
    }
    text
}

fn row(worker: &Worker) -> [String; 10] {
    let load = |of: fn(&super::document::Load) -> u64| {
        worker.load.as_ref().map_or_else(|| "-".to_owned(), |load| of(load).to_string())
    };
    [
        plain(&worker.name),
        plain(&worker.state),
        plain(&worker.model.name),
        layers(worker.model.layers),
        load(|load| load.running.into()),
        load(|load| load.waiting.into()),
        format!("{}/{}", load(|load| load.kv_used), worker.capacity.kv_tokens),
        load(|load| load.tokens_per_second.into()),
        plain(worker.address.as_deref().unwrap_or("-")),
        format!("{} ms ago", worker.progress_ms),
    ]
}

fn layers([begin, end]: [u32; 2]) -> String {
    format!("{begin}-{}", end.saturating_sub(1))
}

/// The stages of split models, and why those that are away are so; nothing where every model is whole.
fn stages(cluster: &Cluster) -> String {
    let of = || cluster.workers.iter().flat_map(|head| head.stages.iter().map(move |stage| (head, stage)));
    if of().next().is_none() {
        return String::new();
    }
    let mut rows = vec![STAGE_HEAD.map(str::to_owned)];
    rows.extend(of().map(|(head, stage)| stage_row(head, stage)));
    let away = of().filter_map(|(_, stage)| Some((stage, stage.reason.as_ref()?)));
    let reasons = away.map(|(stage, reason)| format!("{} is away: {}\n", plain(&stage.worker), plain(reason)));
    aligned(&rows) + &reasons.collect::<String>()
}

fn stage_row(head: &Worker, stage: &Stage) -> [String; 6] {
    [
        plain(&head.name),
        plain(&stage.worker),
        plain(&stage.state),
        layers(stage.layers),
        format!("{:.0} %", 100.0 * stage.busy),
        plain(stage.address.as_deref().unwrap_or("-")),
    ]
}

fn trouble(incident: &Incident) -> String {
    let times = if incident.times > 1 { format!(", {} times", incident.times) } else { String::new() };
    let who = incident.worker.as_deref().map_or_else(|| "somebody".to_owned(), plain);
    let advice = incident.advice.as_deref().map(|advice| format!("    -> {}\n", plain(advice))).unwrap_or_default();
    format!(
        "{} {} ago{times}: {who} from {}: {}\n{advice}",
        plain(&incident.event),
        duration(incident.seconds_ago),
        plain(&incident.address),
        plain(&incident.why)
    )
}

/// Columns as wide as their widest cell.
fn aligned<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let line = |row: &[String; COLUMNS]| {
        let cells = row.iter().enumerate().map(|(column, cell)| format!("{cell:<width$}", width = width(column)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// For scripts: the kind of line first, no field ever empty.
pub(super) fn lines(cluster: &Cluster) -> String {
    let router = &cluster.router;
    let mut text = line(&["router", &router.incarnation, &router.build, &router.uptime_s.to_string()]);
    for worker in &cluster.workers {
        let [_, _, _, layers, running, waiting, kv, speed, address, _] = row(worker);
        let (name, state, model) = (&worker.name, &worker.state, &worker.model.name);
        let fields = [
            "worker",
            name,
            state,
            &worker.incarnation,
            model,
            &layers,
            &running,
            &waiting,
            &kv,
            &speed,
            &address,
            &worker.build,
        ];
        text.push_str(&line(&fields));
    }
    for worker in &cluster.workers {
        text.extend(worker.stages.iter().map(|stage| stage_line(worker, stage)));
    }
    for incident in &cluster.incidents {
        let (times, ago) = (incident.times.to_string(), incident.seconds_ago.to_string());
        let (worker, advice) = (incident.worker.as_deref().unwrap_or("-"), incident.advice.as_deref().unwrap_or("-"));
        let (event, address, cause, why) = (&incident.event, &incident.address, &incident.cause, &incident.why);
        text.push_str(&line(&["incident", event, worker, address, cause, &times, &ago, why, advice]));
    }
    text
}

/// Begins like the line of a worker.
fn stage_line(head: &Worker, stage: &Stage) -> String {
    let [_, _, _, layers, busy, address] = stage_row(head, stage);
    let incarnation = stage.incarnation.as_deref().unwrap_or("-");
    let reason = stage.reason.as_deref().unwrap_or("-");
    let (name, state, model) = (&stage.worker, &stage.state, &head.model.name);
    line(&["stage", name, state, incarnation, model, &layers, &head.name, &busy, &address, reason])
}

fn line(fields: &[&str]) -> String {
    let fields = fields.iter().map(|field| if field.trim().is_empty() { "-".to_owned() } else { plain(field) });
    fields.collect::<Vec<_>>().join("\t") + "\n"
}

fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// In the two largest units.
fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
