//! `vmsup ops`: operations that take time.

use super::client::{Api, Client};
use super::failure::{FAILED, Failure};
use super::output::{age, now, print, print_json, table};
use super::sanitize::line;
use vmsup::api::types::{Operation, OperationKind, OperationState};

/// `vmsup ops`.
pub fn ls(client: &Client, json: bool) -> Result<(), Failure> {
    let operations: Vec<Operation> = client.connect()?.call("GET", "/v1/ops")?;
    if json {
        return print_json(&operations);
    }
    let now = now();
    let rows: Vec<Vec<String>> = operations.iter().map(|operation| row(operation, now)).collect();
    print(table(&["ID", "KIND", "VM", "STATE", "STAGE", "AGE", "ERROR"], &rows))
}

fn row(operation: &Operation, now: u64) -> Vec<String> {
    let stage = match operation.percent {
        Some(percent) => format!("{} {percent}%", operation.stage),
        None => operation.stage.clone(),
    };
    vec![
        operation.id.to_string(),
        kind(operation.kind).into(),
        operation.vm.clone(),
        state(operation.state).into(),
        stage,
        age(now.saturating_sub(operation.begun_at_ms / 1000)),
        operation.error.as_ref().map(|error| error.message.clone()).unwrap_or_default(),
    ]
}

fn kind(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Create => "create",
        OperationKind::Start => "start",
        OperationKind::Stop => "stop",
        OperationKind::Update => "update",
        OperationKind::Remove => "remove",
        OperationKind::Import => "import",
    }
}

fn state(state: OperationState) -> &'static str {
    match state {
        OperationState::Running => "running",
        OperationState::Done => "done",
        OperationState::Failed => "failed",
        OperationState::Cancelled => "cancelled",
        OperationState::Interrupted => "interrupted",
    }
}

/// `vmsup ops wait ID`.
pub fn wait(client: &Client, id: u64, json: bool) -> Result<(), Failure> {
    let ended = until_over(&mut client.connect()?, id)?;
    told(&ended, json)?;
    if ended.state == OperationState::Done { Ok(()) } else { Err(Failure::status(FAILED)) }
}

/// `vmsup ops cancel ID`.
pub fn cancel(client: &Client, id: u64, json: bool) -> Result<(), Failure> {
    let mut api = client.connect()?;
    let _: Operation = api.call("DELETE", &format!("/v1/ops/{id}"))?;
    let ended = until_over(&mut api, id)?;
    told(&ended, json)?;
    // It was done, or had failed, before it could be cancelled.
    if ended.state == OperationState::Cancelled { Ok(()) } else { Err(Failure::status(FAILED)) }
}

fn until_over(api: &mut Api, id: u64) -> Result<Operation, Failure> {
    api.be_patient()?;
    Ok(api.call("GET", &format!("/v1/ops/{id}?wait=true"))?)
}

fn told(operation: &Operation, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(operation);
    }
    let why = operation.error.as_ref().map(|error| format!(": {}", error.message)).unwrap_or_default();
    let Operation { id, vm, .. } = operation;
    print(line(&format!("{id}: {} of {vm} {}{why}", kind(operation.kind), state(operation.state))) + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_is_done_and_how_far_it_is() {
        let operation = Operation {
            id: 7,
            kind: OperationKind::Import,
            vm: "web1".into(),
            owner: 1,
            state: OperationState::Running,
            stage: "root.img".into(),
            percent: Some(40),
            begun_at_ms: 1_000_000,
            ended_at_ms: None,
            error: None,
        };
        assert_eq!(row(&operation, 1061), ["7", "import", "web1", "running", "root.img 40%", "1m1s", ""]);
    }
}
