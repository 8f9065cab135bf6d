//! Which modules are targeted, with which rank and scale, against what PEFT's own functions say: see
//! `tests/fixtures/golden/targets/make.py`.

use serde::Deserialize;

use super::golden;
use crate::adapter::config::Config;
use crate::adapter::pattern::Pattern;
use crate::adapter::scales::Scales;
use crate::adapter::targets::Targets;
use crate::adapter::{AdapterError, Linear};

#[derive(Deserialize)]
struct Paths {
    paths: Vec<String>,
}

/// A digit for each path.
#[derive(Deserialize)]
struct Case {
    targeted: String,
    others: String,
    rank: String,
    alpha: String,
}

/// The configuration's own text, with its entries in their order: the order of a pattern's keys decides.
fn config(line: &str) -> Config {
    let (_, rest) = line.split_once("{\"config\": {").unwrap();
    let (fields, _) = rest.split_once(", \"targeted\": ").unwrap();
    Config::parse(format!("{{\"peft_type\": \"LORA\", {fields}").as_bytes()).unwrap()
}

fn digit(digits: &str, at: usize) -> u32 {
    u32::from(digits.as_bytes()[at] - b'0')
}

#[test]
fn modules_ranks_and_scales_are_those_of_peft() {
    let file = std::fs::read_to_string(golden("targets/cases.jsonl")).unwrap();
    let mut lines = file.lines();
    let Paths { paths } = serde_json::from_str(lines.next().unwrap()).unwrap();
    let (mut targeted, mut others) = (0, 0);
    for line in lines {
        let (config, case): (_, Case) = (config(line), serde_json::from_str(line).unwrap());
        let scales = Scales::new(&config).unwrap();
        for (at, path) in paths.iter().enumerate() {
            let or = |digit: u32, otherwise: u32| if digit == 0 { otherwise } else { digit };
            let (rank, alpha) = (or(digit(&case.rank, at), 8), or(digit(&case.alpha, at), 16));
            let found = scales.of(path).unwrap();
            assert_eq!(found.rank, rank, "{path}: {line}");
            assert_eq!(found.factor, (f64::from(alpha) / f64::from(rank)) as f32, "{path}: {line}");
        }
        match Targets::new(&config) {
            Ok(targets) => {
                assert_eq!(case.others, "00", "{line}");
                for (at, path) in paths.iter().enumerate() {
                    assert_eq!(u32::from(targets.contain(path)), digit(&case.targeted, at), "{path}: {line}");
                    targeted += digit(&case.targeted, at);
                }
            }
            Err(AdapterError::TargetsOther { .. }) => {
                assert_ne!(case.others, "00", "{line}");
                others += 1;
            }
            Err(error) => panic!("{error}: {line}"),
        }
    }
    assert!(targeted > 1000 && others > 3, "{targeted} and {others}");
}

fn parse(fields: &str) -> Config {
    Config::parse(format!("{{\"peft_type\": \"LORA\", \"lora_alpha\": 6, {fields}}}").as_bytes()).unwrap()
}

#[test]
fn all_linear_is_every_linear_layer_but_the_output_head() {
    for spelling in ["all-linear", "ALL-Linear"] {
        let targets = Targets::new(&parse(&format!("\"r\": 4, \"target_modules\": \"{spelling}\""))).unwrap();
        assert!(targets.contain("model.layers.7.mlp.down_proj"));
        assert!(!targets.contain("lm_head"));
    }
    let excluded = r#""r": 4, "target_modules": "all-linear", "exclude_modules": ".*mlp.*""#;
    assert!(!Targets::new(&parse(excluded)).unwrap().contain("model.layers.7.mlp.down_proj"));
}

#[test]
fn rank_stabilised_scales_divide_by_the_root_of_the_modules_own_rank() {
    let fields = r#""r": 4, "use_rslora": true, "target_modules": ["q_proj"], "rank_pattern": {"k_proj": 9}"#;
    let scales = Scales::new(&parse(fields)).unwrap();
    assert_eq!(scales.of("model.layers.0.self_attn.q_proj").unwrap().factor, 3.0);
    assert_eq!(scales.of("model.layers.0.self_attn.k_proj").unwrap().factor, 2.0);
    // 6 / sqrt(4) in double precision, then rounded: as Python meets the tensors.
    let thirds = Scales::new(&parse(r#""r": 3, "use_rslora": true, "target_modules": ["q_proj"]"#)).unwrap();
    assert_eq!(thirds.of("model.layers.0.self_attn.q_proj").unwrap().factor, (6.0 / 3.0f64.sqrt()) as f32);
}

#[test]
fn an_expression_that_python_reads_in_another_way_is_refused() {
    let patterns = [
        r"(?!.*lm_head).*q_proj",
        r"(?<=layers\.)\d+.*",
        r"(.)\1.*",
        r".*\Z",
        r"(?#comment).*",
        r".*+q_proj",
        r".++",
        r"(?:ab){2}+.*",
        r"[a&&b].*",
        r"[a--b].*",
        r"[[a]b].*",
        r"[^[].*",
        r"(?x) .* # q_proj",
        r"(?i-x:.*)",
        r".*\<q_proj",
        r"\b{start}.*",
        r"a)|(.*",
        r".*(",
        r"*",
        "(?i)ſelf.*",
        r"(?i)\u017felf.*",
        r".{,30}q_proj",
        r"((((a{1,500}){1,500}){1,500}){1,500})",
    ];
    let mut sentences = String::new();
    for pattern in patterns.into_iter().chain([&*"(".repeat(100), &*"a|".repeat(20_000)]) {
        let text = serde_json::to_string(pattern).unwrap();
        let error = Targets::new(&parse(&format!("\"r\": 4, \"target_modules\": {text}"))).unwrap_err();
        assert!(matches!(error, AdapterError::BadPattern { .. }), "{pattern}: {error}");
        sentences.push_str(&format!("{error}\n"));
    }
    insta::assert_snapshot!(sentences);
}

#[test]
fn brackets_and_escapes_that_both_dialects_read_alike_are_taken() {
    let path = "model.layers.3.self_attn.q_proj";
    for pattern in [
        r"model\.layers\.[0-9]+\.self_attn\.[]q\[]_proj",
        r"model[^]]*_proj",
        r".*?\.\d{1,2}\..*?q_proj",
        r"(?i)MODEL.*",
        r"(?:model|x)\.[\w.]+",
        r"(?P<all>.*)",
        r"\Amodel.+\S$",
    ] {
        let text = serde_json::to_string(pattern).unwrap();
        let targets = Targets::new(&parse(&format!(
            "\"r\": 4, \"target_modules\": {text}, \"exclude_modules\": [\"lm_head\", \"embed_tokens\"]"
        )));
        assert!(targets.unwrap().contain(path), "{pattern}");
    }
}

#[test]
fn expressions_are_counted_and_names_are_not() {
    let entries = |key: fn(usize) -> String, count: usize| {
        let entries: Vec<_> = (0..count).map(|at| format!("{:?}: 4", key(at))).collect();
        parse(&format!("\"r\": 4, \"target_modules\": [\"q_proj\"], \"rank_pattern\": {{{}}}", entries.join(", ")))
    };
    let named = entries(|at| format!("model.layers.{}.mlp.up_proj", at), 1000);
    assert_eq!(Scales::new(&named).unwrap().of("model.layers.999.mlp.up_proj").unwrap().rank, 4);
    let expressions = entries(|at| format!(".*[.]{at}[.].*"), 65);
    assert!(matches!(Scales::new(&expressions), Err(AdapterError::ManyPatterns { field: "rank_pattern", limit: 64 })));
}

#[test]
fn the_patterns_of_real_adapters_fit() {
    let layers: Vec<_> = (0..126).map(|layer| layer.to_string()).collect();
    let linears = Linear::ALL.map(Linear::path);
    let spelled: Vec<_> = layers
        .iter()
        .flat_map(|layer| linears.iter().map(move |linear| format!("model.layers.{layer}.{linear}")))
        .collect();
    let some = format!(r"model\.layers\.({})\.(self_attn|mlp)\.(q_proj|o_proj|up_proj)", layers.join("|"));
    let path = "model.layers.125.self_attn.o_proj";
    assert!(Pattern::whole("target_modules", &some).unwrap().matches(path));
    assert!(Pattern::whole("target_modules", &spelled.join("|")).unwrap().matches(path));
    assert!(Pattern::end("rank_pattern", &some).unwrap().matches(path));
}
