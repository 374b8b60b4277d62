//! The VMs of a watched directory's owner: those of the user that the supervisor runs as.

use super::Actions;
use crate::api::types::{ApiError, CreateRequest, ErrorCode, EventKind, OperationKind, UpdateRequest};
use crate::reconcile::{Answer, Call, Step, There, Wanted};
use crate::serve::registry::Who;
use crate::serve::tenants::Terms;
use crate::serve::vm::{Ask, Hold};
use crate::serve::{Context, tasks};
use std::sync::Arc;
use std::time::Duration;

/// Seconds between power button and kill, as with `vmsup apply`.
const DEADLINE_S: u32 = 30;

/// The way to them. What is done to them is done as for a client: as operations that `vmsup ops` shows.
#[derive(Debug, Clone)]
pub struct Own {
    context: Arc<Context>,
}

impl Own {
    /// Those of this supervisor.
    pub fn new(context: &Arc<Context>) -> Own {
        Own { context: context.clone() }
    }

    fn who(&self) -> Who {
        Who { uid: self.context.host.uid, all: false }
    }

    async fn try_call(&self, step: &Step, call: Call, wanted: Option<&Wanted>) -> Result<Answer, ApiError> {
        let (context, owner) = (&self.context, self.context.host.uid);
        let begin = |kind| tasks::begin(context, kind, &step.name, owner);
        if let (Call::Create, Some(wanted)) = (call, wanted) {
            tasks::admit(context, &wanted.spec, &None)?;
            let (spec, source) = (wanted.spec.clone(), Some(step.source(wanted)));
            let request = CreateRequest { spec, remove_when_ended: false, source, files: None };
            tasks::create(context, request, Terms { owner, limit: None }, begin(OperationKind::Create)).await?;
            return Ok(Answer::Done);
        }
        let hold = step.there.as_ref().and_then(|vm| Hold::find(context, self.who(), &vm.id));
        let Some(hold) = hold else { return Ok(Answer::NoVm) };
        match (call, wanted) {
            (Call::Update, Some(wanted)) => {
                tasks::admit(context, &wanted.spec, &None)?;
                let request = UpdateRequest {
                    spec: wanted.spec.clone(),
                    source: Some(step.source(wanted)),
                    if_generation: step.there.as_ref().map(|vm| vm.generation),
                    deadline_s: DEADLINE_S,
                    files: None,
                };
                return tasks::update(context, &hold, request, None, &None, begin(OperationKind::Update))
                    .await
                    .map(Answer::Updated);
            }
            (Call::Start, _) => tasks::start(context, &hold.vm, &None, begin(OperationKind::Start)).await?,
            (Call::Look, _) => return Ok(Answer::Seen(There::from(&hold.vm.summary()))),
            (Call::Stop, _) => {
                let patience = Duration::from_secs(DEADLINE_S.into());
                tasks::stop(&hold, Ask::Stop(patience), begin(OperationKind::Stop)).await?;
            }
            (Call::Delete, _) => tasks::remove(context, &hold.vm, begin(OperationKind::Remove)).await?,
            (Call::Create | Call::Update, _) => return Ok(Answer::NoVm),
        }
        Ok(Answer::Done)
    }
}

impl Actions for Own {
    fn list(&self) -> Vec<There> {
        self.context.registry.list_for(self.who()).iter().map(|vm| There::from(&vm.summary())).collect()
    }

    async fn call(&self, step: &Step, call: Call, wanted: Option<&Wanted>) -> Answer {
        match self.try_call(step, call, wanted).await {
            Ok(answer) => answer,
            Err(ApiError { code: ErrorCode::NotFound, .. }) => Answer::NoVm,
            Err(ApiError { field, message, .. }) => Answer::Failed(match (field, wanted) {
                (Some(field), Some(wanted)) => format!("{}: {field}: {message}", wanted.file),
                _ => message,
            }),
        }
    }

    fn applied(&self, sentence: String) {
        self.context.events.emit(EventKind::SourceApplied, None, sentence);
    }

    fn trouble(&self, sentence: String) {
        self.context.events.emit(EventKind::SourceTrouble, None, sentence);
    }
}
