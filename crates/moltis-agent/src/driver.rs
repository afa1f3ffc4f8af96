//! The driver of a [`Turn`]: asks the model, calls the tools, keeps the clock, and tells whoever
//! watches.
//!
//! One loop and no task: whoever awaits [`drive`] owns all of it, and dropping it drops the request to
//! the model and the calls.

use std::future::Future;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, OptionFuture};
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use crate::message::{Message, ToolCall, ToolResult};
use crate::model::{Model, Request, Said, ToolSpec};
use crate::turn::{ModelFailure, Step, StopReason, Turn, TurnLimits};
use crate::window;

/// The tools that a model may call.
pub trait Tools: Send + Sync {
    /// Returns what a model is told of them.
    fn specs(&self) -> &[ToolSpec];

    /// Calls one. A name that is none, and arguments that do not fit, are results that say so. The
    /// future is dropped where the turn ends first.
    fn call<'a>(&'a self, call: &'a ToolCall) -> BoxFuture<'a, ToolResult>;
}

/// Who watches a turn, and keeps what was said.
pub trait Audience: Send {
    /// The model says something.
    fn text(&mut self, delta: &str);

    /// A tool is called.
    fn called(&mut self, call: &ToolCall);

    /// A tool has come back.
    fn returned(&mut self, call: &str, result: &ToolResult);

    /// Stores what the conversation has grown by; nothing goes on before that. `Err` says for a person
    /// why it cannot be stored, and ends the turn.
    fn keep<'a>(&'a mut self, message: &'a Message) -> BoxFuture<'a, Result<(), String>>;
}

/// How a turn came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Why it is over.
    pub reason: StopReason,
    /// The conversation, with all that this turn added.
    pub history: Vec<Message>,
}

/// Drives one turn of a conversation that ends with what a person said. `stop` resolves, with the words
/// for calls that are under way, when a person stops it.
pub async fn drive(
    limits: TurnLimits,
    instructions: &str,
    history: Vec<Message>,
    (model, tools): (&dyn Model, &dyn Tools),
    audience: &mut dyn Audience,
    stop: impl Future<Output = String> + Send,
) -> Outcome {
    let mut driver = Driver {
        turn: Turn::new(limits, Instant::now().into_std()),
        history,
        audience,
    };
    let mut stop = std::pin::pin!(stop);
    loop {
        let calls = match driver.begin_round().await {
            Next::Over(reason) => return driver.over(reason),
            Next::Ask => {
                let history = std::mem::take(&mut driver.history);
                let asked = Asked {
                    model,
                    tools,
                    instructions,
                    history: &history,
                };
                driver.hear(asked, &mut stop).await;
                driver.history = history;
                continue;
            }
            Next::Wait => {
                driver.wait(&mut stop).await;
                continue;
            }
            Next::Call(calls) => calls,
        };
        driver.call(tools, calls, &mut stop).await;
    }
}

struct Driver<'a> {
    turn: Turn,
    history: Vec<Message>,
    audience: &'a mut dyn Audience,
}

/// What a model is asked, and whose tools it may call.
#[derive(Clone, Copy)]
struct Asked<'a> {
    model: &'a dyn Model,
    tools: &'a dyn Tools,
    instructions: &'a str,
    history: &'a [Message],
}

/// What the turn wants next.
enum Next {
    Ask,
    Call(Vec<ToolCall>),
    /// Until its time has come.
    Wait,
    Over(StopReason),
}

impl Driver<'_> {
    /// Keeps what was said, and takes the next steps.
    async fn begin_round(&mut self) -> Next {
        if let Err(words) = self.keep().await {
            return Next::Over(StopReason::Failed(ModelFailure {
                passes: false,
                retry_after: None,
                words,
            }));
        }
        let mut calls = Vec::new();
        while let Some(step) = self.turn.poll_step() {
            match step {
                Step::Ask => return Next::Ask,
                Step::Over(reason) => return Next::Over(reason),
                Step::Call(call) => calls.push(call),
            }
        }
        if calls.is_empty() {
            Next::Wait
        } else {
            Next::Call(calls)
        }
    }

    async fn keep(&mut self) -> Result<(), String> {
        while let Some(message) = self.turn.poll_message() {
            self.audience.keep(&message).await?;
            self.history.push(message);
        }
        Ok(())
    }

    fn over(self, reason: StopReason) -> Outcome {
        Outcome {
            reason,
            history: self.history,
        }
    }

    /// Asks the model, and hears it to the end.
    async fn hear(&mut self, asked: Asked<'_>, stop: &mut (impl Future<Output = String> + Unpin)) {
        let messages = match window::fit(asked.history, asked.model.tokens_max()) {
            Ok(fitted) => fitted.messages,
            Err(error) => {
                let failure = ModelFailure {
                    passes: false,
                    retry_after: None,
                    words: error.to_string(),
                };
                return self.turn.handle_failed(failure, now());
            }
        };
        let mut answer = asked.model.ask(Request {
            instructions: asked.instructions,
            messages,
            tools: asked.tools.specs(),
        });
        while self.turn.is_answering() {
            tokio::select! {
                biased;
                words = &mut *stop => self.turn.stop(&words),
                () = until(&self.turn) => self.turn.handle_timeout(now()),
                said = answer.next() => match said {
                    Some(Ok(Said::Text(delta))) => {
                        self.audience.text(&delta);
                        self.turn.handle_text(&delta);
                    }
                    Some(Ok(Said::Call(call))) => self.turn.handle_call(call),
                    Some(Err(failure)) => self.turn.handle_failed(failure, now()),
                    None => self.turn.handle_answered(now()),
                },
            }
        }
    }

    /// Waits until the model may be asked again.
    async fn wait(&mut self, stop: &mut (impl Future<Output = String> + Unpin)) {
        tokio::select! {
            biased;
            words = stop => self.turn.stop(&words),
            () = until(&self.turn) => self.turn.handle_timeout(now()),
        }
    }

    /// Makes these calls, and those for which their ends make room.
    async fn call(
        &mut self,
        tools: &dyn Tools,
        calls: Vec<ToolCall>,
        stop: &mut (impl Future<Output = String> + Unpin),
    ) {
        let make = |call: ToolCall| async move {
            let result = tools.call(&call).await;
            (call.id, result)
        };
        let mut under_way = FuturesUnordered::new();
        for call in calls {
            self.audience.called(&call);
            under_way.push(make(call));
        }
        while self.turn.is_calling() {
            tokio::select! {
                biased;
                words = &mut *stop => self.turn.stop(&words),
                () = until(&self.turn) => self.turn.handle_timeout(now()),
                Some((id, result)) = under_way.next() => {
                    self.audience.returned(&id, &result);
                    self.turn.handle_result(&id, result, now());
                    while let Some(call) = self.turn.poll_call() {
                        self.audience.called(&call);
                        under_way.push(make(call));
                    }
                }
            }
        }
    }
}

/// Waits until the turn wants to be told the time.
async fn until(turn: &Turn) {
    let at = turn.poll_timeout().map(Instant::from_std);
    OptionFuture::from(at.map(sleep_until)).await;
    if at.is_none() {
        std::future::pending::<()>().await;
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use std::time::Duration;

    use futures_util::stream::{self, BoxStream};

    use crate::message::Arguments;

    use super::*;

    /// A model that says what it was told to say, an answer for each time that it is asked.
    struct Scripted {
        answers: Mutex<VecDeque<Vec<Result<Said, ModelFailure>>>>,
        asked: Mutex<Vec<usize>>,
        /// It never ends its last answer.
        hangs: bool,
    }

    impl Scripted {
        fn new(answers: impl IntoIterator<Item = Vec<Result<Said, ModelFailure>>>) -> Self {
            Self {
                answers: Mutex::new(answers.into_iter().collect()),
                asked: Mutex::default(),
                hangs: false,
            }
        }
    }

    impl Model for Scripted {
        fn ask<'a>(&'a self, request: Request<'a>) -> BoxStream<'a, Result<Said, ModelFailure>> {
            self.asked.lock().unwrap().push(request.messages.len());
            let mut answers = self.answers.lock().unwrap();
            let answer = stream::iter(answers.pop_front().expect("it is asked too often"));
            if self.hangs && answers.is_empty() {
                return answer.chain(stream::pending()).boxed();
            }
            answer.boxed()
        }

        fn tokens_max(&self) -> usize {
            10_000
        }
    }

    /// `wait` takes a second, `hang` for ever, and each tells its name.
    struct Clock;

    impl Tools for Clock {
        fn specs(&self) -> &[ToolSpec] {
            &[]
        }

        fn call<'a>(&'a self, call: &'a ToolCall) -> BoxFuture<'a, ToolResult> {
            Box::pin(async move {
                match &call.tool[..] {
                    "wait" => tokio::time::sleep(Duration::from_secs(1)).await,
                    "hang" => std::future::pending().await,
                    _ => return ToolResult::failed("there is no such tool"),
                }
                ToolResult::done(call.tool.clone())
            })
        }
    }

    #[derive(Default)]
    struct Heard {
        text: String,
        kept: Vec<Message>,
        is_full: bool,
    }

    impl Audience for Heard {
        fn text(&mut self, delta: &str) {
            self.text.push_str(delta);
        }

        fn called(&mut self, call: &ToolCall) {
            self.text.extend(["[", &call.id]);
        }

        fn returned(&mut self, call: &str, result: &ToolResult) {
            self.text.extend(["]", call, ":", &result.text]);
        }

        fn keep<'a>(&'a mut self, message: &'a Message) -> BoxFuture<'a, Result<(), String>> {
            Box::pin(async move {
                if self.is_full {
                    return Err("the disk is full".to_owned());
                }
                self.kept.push(message.clone());
                Ok(())
            })
        }
    }

    fn says(text: &str) -> Said {
        Said::Text(text.to_owned())
    }

    fn calls(id: &str, tool: &str) -> Said {
        Said::Call(ToolCall {
            id: id.to_owned(),
            tool: tool.to_owned(),
            arguments: Arguments::parse(""),
        })
    }

    fn asked() -> Vec<Message> {
        vec![Message::User {
            text: "do it".to_owned(),
        }]
    }

    async fn told(model: &Scripted, heard: &mut Heard, stop: Option<Duration>) -> Outcome {
        let stop = async move {
            match stop {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
            "stopped".to_owned()
        };
        let limits = TurnLimits {
            parallel_max: 2,
            ..TurnLimits::default()
        };
        drive(limits, "", asked(), (model, &Clock), heard, stop).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_goes_through_its_calls_to_an_answer() {
        let model = Scripted::new([
            vec![
                Ok(says("Let me ")),
                Ok(says("see. ")),
                Ok(calls("a", "wait")),
                Ok(calls("b", "wait")),
                Ok(calls("c", "wait")),
                Ok(calls("d", "fly")),
            ],
            vec![Ok(says("Done."))],
        ]);
        let mut heard = Heard::default();
        let began = Instant::now();
        let outcome = told(&model, &mut heard, None).await;
        assert_eq!(outcome.reason, StopReason::End);
        assert_eq!(began.elapsed(), Duration::from_secs(2), "two at once");
        assert!(
            heard.text.starts_with("Let me see. [a[b]"),
            "{}",
            heard.text
        );
        assert!(heard.text.contains("]d:there is no such tool"));
        assert!(heard.text.ends_with("Done."));
        assert_eq!(outcome.history[1..], heard.kept);
        assert_eq!(*model.asked.lock().unwrap(), [1, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_model_is_asked_again_and_a_silent_one_has_its_time() {
        let busy = ModelFailure {
            passes: true,
            retry_after: Some(Duration::from_secs(7)),
            words: "busy".to_owned(),
        };
        let mut model = Scripted::new([vec![Err(busy)], vec![Ok(says("Now"))]]);
        model.hangs = true;
        let mut heard = Heard::default();
        let began = Instant::now();
        let outcome = told(&model, &mut heard, None).await;
        assert_eq!(outcome.reason, StopReason::Limit);
        assert_eq!(began.elapsed(), TurnLimits::default().time_max);
        assert_eq!(heard.kept.len(), 1, "what it had said stays");
    }

    #[tokio::test(start_paused = true)]
    async fn a_person_stops_it_wherever_it_is() {
        let after = Some(Duration::from_secs(3));
        let hanging = [Ok(calls("a", "hang")), Ok(calls("b", "wait"))];
        let model = Scripted::new([hanging.to_vec()]);
        let mut heard = Heard::default();
        let outcome = told(&model, &mut heard, after).await;
        assert_eq!(outcome.reason, StopReason::Stopped);
        let Some(Message::Results { results }) = outcome.history.last() else {
            panic!("no results: {outcome:?}");
        };
        assert_eq!(results[0].1, ToolResult::failed("stopped"));
        assert_eq!(results[1].1, ToolResult::done("wait"));
        let mut model = Scripted::new([vec![Ok(says("I am"))]]);
        model.hangs = true;
        let outcome = told(&model, &mut heard, after).await;
        assert_eq!(outcome.reason, StopReason::Stopped);
        assert_eq!(outcome.history.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_goes_on_that_cannot_be_kept() {
        let model = Scripted::new([vec![Ok(calls("a", "wait"))]]);
        let mut heard = Heard {
            is_full: true,
            ..Heard::default()
        };
        let outcome = told(&model, &mut heard, None).await;
        assert!(matches!(outcome.reason, StopReason::Failed(_)));
        assert_eq!(heard.text, "", "no tool was called");
    }
}
