//! One turn: from what a person said until the model has nothing more to do. Pure.
//!
//! Whoever drives it does what [`Turn::poll_step`] says, and tells what came of it. Text that the
//! model says goes to whoever watches on its way; the turn keeps it for the history. The history is
//! whole after each step: where a turn is stopped or fails, each call that was made has a result which
//! says so.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use crate::message::{Arguments, Message, ToolCall, ToolResult};

/// How often a model is asked again in one round before its failure is told.
const ATTEMPTS_MAX: u32 = 5;

/// How long is waited before it is asked again the first time; twice as long each time then.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Calls of one round that are made; the others are answered with words.
const CALLS_MAX: usize = 64;

/// Calls that a model may make in one round at all.
const CALLS_HEARD_MAX: usize = 256;

/// Bytes of text, and of calls, that a model may say in one round.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// What one turn may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnLimits {
    /// How often the model is asked, with the results of its calls.
    pub rounds_max: u32,
    /// How long everything together may take.
    pub time_max: Duration,
    /// Calls that are under way at once.
    pub parallel_max: usize,
}

impl Default for TurnLimits {
    /// 50 rounds, half an hour, ten calls at once.
    fn default() -> Self {
        Self {
            rounds_max: 50,
            time_max: Duration::from_mins(30),
            parallel_max: 10,
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Ask the model, with all that was said.
    Ask,
    /// Call this tool.
    Call(ToolCall),
    /// Leave off: whatever is under way for this turn is of no interest any more.
    Over(StopReason),
}

/// Why a turn is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The model has nothing more to do.
    End,
    /// A person stopped it.
    Stopped,
    /// It had its rounds, or its time.
    Limit,
    /// The model failed.
    Failed(ModelFailure),
}

/// How a model failed to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFailure {
    /// It may be asked again: it had no time, or could not be reached.
    pub passes: bool,
    /// How long its provider asks to be left alone.
    pub retry_after: Option<Duration>,
    /// For a person: which model, what it said, what to do.
    pub words: String,
}

/// One turn.
#[derive(Debug)]
pub struct Turn {
    limits: TurnLimits,
    until: Instant,
    /// Rounds that were begun.
    rounds: u32,
    state: State,
    steps: VecDeque<Step>,
    /// What is to be added to the conversation.
    said: VecDeque<Message>,
}

/// What the turn waits for.
#[derive(Debug)]
enum State {
    /// The model's answer to this round.
    AwaitAnswer {
        text: String,
        calls: Vec<ToolCall>,
        /// How often it was asked.
        attempts: u32,
    },
    /// The time to ask once more.
    AwaitRetry { at: Instant, attempts: u32 },
    /// What the calls come to.
    AwaitResults {
        calls: Vec<(ToolCall, Option<ToolResult>)>,
        /// Calls that were made or answered.
        begun: usize,
    },
    /// Nothing.
    Over,
}

impl Turn {
    /// Begins: the conversation ends with what a person said.
    pub fn new(limits: TurnLimits, now: Instant) -> Self {
        let mut turn = Self {
            limits,
            until: now + limits.time_max,
            rounds: 0,
            state: State::Over,
            steps: VecDeque::new(),
            said: VecDeque::new(),
        };
        turn.begin_round();
        turn
    }

    /// The model says something.
    pub fn handle_text(&mut self, delta: &str) {
        let State::AwaitAnswer { text, .. } = &mut self.state else {
            return;
        };
        text.push_str(delta);
        if text.len() > TEXT_BYTES_MAX {
            self.fail(ModelFailure {
                passes: false,
                retry_after: None,
                words: format!("the model said more than {TEXT_BYTES_MAX} bytes at once"),
            });
        }
    }

    /// The model wants a tool called.
    pub fn handle_call(&mut self, call: ToolCall) {
        let State::AwaitAnswer { calls, .. } = &mut self.state else {
            return;
        };
        calls.push(call);
        let bytes: usize = calls.iter().map(ToolCall::bytes).sum();
        if calls.len() > CALLS_HEARD_MAX || bytes > TEXT_BYTES_MAX {
            self.fail(ModelFailure {
                passes: false,
                retry_after: None,
                words: format!(
                    "the model called more than {CALLS_HEARD_MAX} tools at once, or with more than {TEXT_BYTES_MAX} bytes"
                ),
            });
        }
    }

    /// The model's answer is whole.
    pub fn handle_answered(&mut self, now: Instant) {
        let State::AwaitAnswer { text, calls, .. } = &mut self.state else {
            return;
        };
        let (text, mut calls) = (mem::take(text), mem::take(calls));
        make_unique(&mut calls);
        if !text.is_empty() || !calls.is_empty() {
            self.said.push_back(Message::Assistant {
                text,
                calls: calls.clone(),
            });
        }
        if calls.is_empty() {
            return self.end(StopReason::End);
        }
        let answered = |(at, call): (usize, ToolCall)| {
            let result = refusal(at, &call);
            (call, result)
        };
        self.state = State::AwaitResults {
            calls: calls.into_iter().enumerate().map(answered).collect(),
            begun: 0,
        };
        self.go_on(now);
    }

    /// The model did not answer, or not to the end.
    pub fn handle_failed(&mut self, failure: ModelFailure, now: Instant) {
        let State::AwaitAnswer {
            text,
            calls,
            attempts,
        } = &self.state
        else {
            return;
        };
        // What was heard already would be said twice.
        let is_silent = text.is_empty() && calls.is_empty();
        let attempts = *attempts;
        if !failure.passes || !is_silent || attempts >= ATTEMPTS_MAX {
            return self.fail(failure);
        }
        let wait = FIRST_WAIT * 2u32.pow(attempts - 1);
        let at = now + failure.retry_after.unwrap_or(wait);
        if at >= self.until {
            return self.fail(failure);
        }
        self.state = State::AwaitRetry { at, attempts };
    }

    /// A tool has done, or not done, what it was asked.
    pub fn handle_result(&mut self, call: &str, result: ToolResult, now: Instant) {
        let State::AwaitResults { calls, .. } = &mut self.state else {
            return;
        };
        let open = calls.iter_mut();
        let mut open = open.filter(|(one, result)| one.id == call && result.is_none());
        if let Some((_, slot)) = open.next() {
            *slot = Some(result);
            self.go_on(now);
        }
    }

    /// A person stops it. Calls that are under way are told to the model as `words` say: whether
    /// what they had started goes on.
    pub fn stop(&mut self, words: &str) {
        self.leave(StopReason::Stopped, words);
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Over => None,
            State::AwaitRetry { at, .. } => Some(at),
            State::AwaitAnswer { .. } | State::AwaitResults { .. } => Some(self.until),
        }
    }

    /// It is as late as that.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now >= self.until {
            let words = "the time of this turn was over; what was started goes on";
            return self.leave(StopReason::Limit, words);
        }
        if let State::AwaitRetry { at, attempts } = self.state
            && now >= at
        {
            self.ask(attempts + 1);
        }
    }

    /// Returns whether the model's answer is waited for.
    pub fn is_answering(&self) -> bool {
        matches!(self.state, State::AwaitAnswer { .. })
    }

    /// Returns whether calls are waited for.
    pub fn is_calling(&self) -> bool {
        matches!(self.state, State::AwaitResults { .. })
    }

    /// Returns the next call to make, where that is what is to be done next.
    pub fn poll_call(&mut self) -> Option<ToolCall> {
        match self
            .steps
            .pop_front_if(|step| matches!(step, Step::Call(_)))?
        {
            Step::Call(call) => Some(call),
            Step::Ask | Step::Over(_) => None,
        }
    }

    /// Returns what to do next; `None` while something is waited for.
    pub fn poll_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Returns what the conversation grows by. It is to be stored before the next step is taken.
    pub fn poll_message(&mut self) -> Option<Message> {
        self.said.pop_front()
    }

    fn begin_round(&mut self) {
        if self.rounds >= self.limits.rounds_max {
            return self.end(StopReason::Limit);
        }
        self.rounds += 1;
        self.ask(1);
    }

    fn ask(&mut self, attempts: u32) {
        self.state = State::AwaitAnswer {
            text: String::new(),
            calls: Vec::new(),
            attempts,
        };
        self.steps.push_back(Step::Ask);
    }

    /// Makes the calls for which there is room, or goes back to the model with their results.
    fn go_on(&mut self, now: Instant) {
        let State::AwaitResults { calls, begun } = &mut self.state else {
            return;
        };
        let made = &calls[..*begun];
        let mut under_way = made.iter().filter(|(_, result)| result.is_none()).count();
        while *begun < calls.len() && under_way < self.limits.parallel_max {
            let (call, result) = &calls[*begun];
            if result.is_none() {
                self.steps.push_back(Step::Call(call.clone()));
                under_way += 1;
            }
            *begun += 1;
        }
        if calls.iter().any(|(_, result)| result.is_none()) {
            return;
        }
        self.tell_results("");
        if now >= self.until {
            return self.end(StopReason::Limit);
        }
        self.begin_round();
    }

    /// Puts the results into the history; those that are missing are told by these words.
    fn tell_results(&mut self, words: &str) {
        let State::AwaitResults { calls, .. } = &mut self.state else {
            return;
        };
        let told = |(call, result): (ToolCall, Option<ToolResult>)| {
            (call.id, result.unwrap_or_else(|| ToolResult::failed(words)))
        };
        let results = mem::take(calls).into_iter().map(told).collect();
        self.said.push_back(Message::Results { results });
    }

    fn fail(&mut self, failure: ModelFailure) {
        let words = failure.words.clone();
        self.leave(StopReason::Failed(failure), &words);
    }

    /// Leaves off wherever it is, with a history that is whole.
    fn leave(&mut self, reason: StopReason, words: &str) {
        match &mut self.state {
            State::Over => return,
            // What it was about to call was never called.
            State::AwaitAnswer { text, .. } => {
                let text = mem::take(text);
                if !text.is_empty() {
                    let calls = Vec::new();
                    self.said.push_back(Message::Assistant { text, calls });
                }
            }
            State::AwaitResults { .. } => self.tell_results(words),
            State::AwaitRetry { .. } => {}
        }
        self.end(reason);
    }

    fn end(&mut self, reason: StopReason) {
        self.state = State::Over;
        self.steps.clear();
        self.steps.push_back(Step::Over(reason));
    }
}

/// Gives each call an id of its own: results are told apart by it.
fn make_unique(calls: &mut [ToolCall]) {
    for at in 0..calls.len() {
        let (before, rest) = calls.split_at_mut(at);
        let call = &mut rest[0];
        let is_taken = |id: &str| id.is_empty() || before.iter().any(|one| one.id == id);
        let mut number = at;
        while is_taken(&call.id) {
            call.id = format!("call-{number}");
            number += 1;
        }
    }
}

/// Returns the result of a call that is not made at all.
fn refusal(at: usize, call: &ToolCall) -> Option<ToolResult> {
    if at >= CALLS_MAX {
        let words =
            format!("not done: at most {CALLS_MAX} tools are called at once; call it again");
        return Some(ToolResult::failed(words));
    }
    match &call.arguments {
        Arguments::Object(_) => None,
        Arguments::Broken { reason, .. } => Some(ToolResult::failed(format!(
            "not done: the arguments of `{}` cannot be read: {reason}",
            call.tool
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "where a clock begins that the tests move"
    )]
    fn start() -> Instant {
        Instant::now()
    }

    fn call(id: &str, arguments: &str) -> ToolCall {
        ToolCall {
            id: id.to_owned(),
            tool: "exec".to_owned(),
            arguments: Arguments::parse(arguments),
        }
    }

    fn failure(passes: bool, retry_after: Option<u64>) -> ModelFailure {
        ModelFailure {
            passes,
            retry_after: retry_after.map(Duration::from_secs),
            words: "no".to_owned(),
        }
    }

    fn asked(limits: TurnLimits, now: Instant) -> Turn {
        let mut turn = Turn::new(limits, now);
        assert_eq!(turn.poll_step(), Some(Step::Ask));
        assert_eq!(turn.poll_step(), None);
        turn
    }

    fn steps(turn: &mut Turn) -> Vec<Step> {
        std::iter::from_fn(|| turn.poll_step()).collect()
    }

    fn said(turn: &mut Turn) -> Vec<Message> {
        std::iter::from_fn(|| turn.poll_message()).collect()
    }

    /// Every call has its result, and nothing else has one.
    fn assert_whole(messages: &[Message]) {
        for pair in messages.windows(2) {
            if let Message::Results { results } = &pair[1] {
                let Message::Assistant { calls, .. } = &pair[0] else {
                    panic!("results of nothing: {messages:?}");
                };
                let called: Vec<_> = calls.iter().map(|call| &call.id).collect();
                let told: Vec<_> = results.iter().map(|(id, _)| id).collect();
                assert_eq!(called, told, "{messages:?}");
            }
        }
        let with_calls = |message: &&Message| matches!(message, Message::Assistant { calls, .. } if !calls.is_empty());
        let results = |message: &&Message| matches!(message, Message::Results { .. });
        let count = messages.iter().filter(with_calls).count();
        assert_eq!(count, messages.iter().filter(results).count());
    }

    #[test]
    fn calls_run_side_by_side_and_their_results_stand_in_order() {
        let now = start();
        let limits = TurnLimits {
            parallel_max: 2,
            ..TurnLimits::default()
        };
        let mut turn = asked(limits, now);
        let all = ["a", "b", "c"].map(|id| call(id, "{}"));
        for one in &all {
            turn.handle_call(one.clone());
        }
        turn.handle_answered(now);
        assert_eq!(
            steps(&mut turn),
            all[..2].iter().cloned().map(Step::Call).collect::<Vec<_>>()
        );
        turn.handle_result("b", ToolResult::done("B"), now);
        assert_eq!(steps(&mut turn), [Step::Call(all[2].clone())]);
        // Twice, and of nobody: of no interest.
        turn.handle_result("b", ToolResult::done("again"), now);
        turn.handle_result("z", ToolResult::done("?"), now);
        turn.handle_result("c", ToolResult::done("C"), now);
        assert_eq!(steps(&mut turn), []);
        turn.handle_result("a", ToolResult::done("A"), now);
        assert_eq!(steps(&mut turn), [Step::Ask]);
        let said = said(&mut turn);
        assert_whole(&said);
        let Some(Message::Results { results }) = said.last() else {
            panic!("no results: {said:?}");
        };
        let texts: Vec<_> = results.iter().map(|(_, result)| &result.text[..]).collect();
        assert_eq!(texts, ["A", "B", "C"]);
    }

    #[test]
    fn what_cannot_be_called_is_told_to_the_model_and_the_turn_goes_on() {
        let now = start();
        let mut turn = asked(TurnLimits::default(), now);
        turn.handle_call(call("a", "{"));
        turn.handle_call(call("a", "{}"));
        turn.handle_call(call("", "{}"));
        turn.handle_answered(now);
        let ids: Vec<_> = steps(&mut turn)
            .into_iter()
            .map(|step| match step {
                Step::Call(call) => call.id,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(ids, ["call-1", "call-2"]);
        for id in &ids {
            turn.handle_result(id, ToolResult::done(""), now);
        }
        assert_eq!(steps(&mut turn), [Step::Ask]);
        let said = said(&mut turn);
        assert_whole(&said);
        let Some(Message::Results { results }) = said.last() else {
            panic!("no results: {said:?}");
        };
        assert!(results[0].1.is_error && results[0].1.text.contains("cannot be read"));
    }

    #[test]
    fn a_model_that_calls_for_ever_has_its_rounds() {
        let now = start();
        let limits = TurnLimits {
            rounds_max: 3,
            ..TurnLimits::default()
        };
        let mut turn = Turn::new(limits, now);
        let mut rounds = 0;
        loop {
            match turn.poll_step() {
                Some(Step::Ask) => {
                    rounds += 1;
                    turn.handle_call(call("a", "{}"));
                    turn.handle_answered(now);
                }
                Some(Step::Call(call)) => {
                    turn.handle_result(&call.id, ToolResult::done(""), now);
                }
                Some(Step::Over(reason)) => {
                    assert_eq!(reason, StopReason::Limit);
                    break;
                }
                None => panic!("it waits for nothing"),
            }
        }
        assert_eq!(rounds, 3);
        assert_whole(&said(&mut turn));
    }

    #[test]
    fn a_model_that_is_busy_is_asked_again_as_its_provider_asks() {
        let now = start();
        let mut turn = asked(TurnLimits::default(), now);
        turn.handle_failed(failure(true, Some(20)), now);
        assert_eq!(turn.poll_timeout(), Some(now + Duration::from_secs(20)));
        turn.handle_timeout(now + Duration::from_secs(19));
        assert_eq!(steps(&mut turn), []);
        let mut now = now + Duration::from_secs(20);
        turn.handle_timeout(now);
        assert_eq!(steps(&mut turn), [Step::Ask]);
        // Nobody says how long: twice as long each time.
        for wait in [2, 4, 8] {
            turn.handle_failed(failure(true, None), now);
            let at = now + Duration::from_secs(wait);
            assert_eq!(turn.poll_timeout(), Some(at));
            now = at;
            turn.handle_timeout(now);
            assert_eq!(steps(&mut turn), [Step::Ask]);
        }
        turn.handle_failed(failure(true, None), now);
        let told = Step::Over(StopReason::Failed(failure(true, None)));
        assert_eq!(steps(&mut turn), [told]);
    }

    #[test]
    fn a_failure_that_does_not_pass_or_comes_too_late_is_told_at_once() {
        let now = start();
        let over = |turn: &mut Turn| {
            let steps = steps(turn);
            assert!(
                matches!(steps[..], [Step::Over(StopReason::Failed(_))]),
                "{steps:?}"
            );
        };
        let mut turn = asked(TurnLimits::default(), now);
        turn.handle_failed(failure(false, None), now);
        over(&mut turn);
        let mut turn = asked(TurnLimits::default(), now);
        turn.handle_failed(failure(true, Some(3600)), now);
        over(&mut turn);
        // In the middle of an answer: what was heard stays, and is not said twice.
        let mut turn = asked(TurnLimits::default(), now);
        turn.handle_text("half an ");
        turn.handle_call(call("a", "{}"));
        turn.handle_failed(failure(true, None), now);
        over(&mut turn);
        let half = Message::Assistant {
            text: "half an ".to_owned(),
            calls: Vec::new(),
        };
        assert_eq!(said(&mut turn), [half]);
        let mut turn = asked(TurnLimits::default(), now);
        turn.handle_text(&"x".repeat(TEXT_BYTES_MAX + 1));
        over(&mut turn);
        let mut turn = asked(TurnLimits::default(), now);
        for _ in 0..=CALLS_HEARD_MAX {
            turn.handle_call(call("a", "{}"));
        }
        over(&mut turn);
    }

    #[test]
    fn whoever_stops_it_leaves_a_whole_history() {
        let now = start();
        let mut turn = asked(TurnLimits::default(), now);
        turn.handle_call(call("a", "{}"));
        turn.handle_call(call("b", "{}"));
        turn.handle_answered(now);
        turn.handle_result("a", ToolResult::done("A"), now);
        turn.stop("stopped; the run goes on");
        assert_eq!(steps(&mut turn), [Step::Over(StopReason::Stopped)]);
        assert_eq!(turn.poll_timeout(), None);
        turn.stop("again");
        turn.handle_result("b", ToolResult::done("late"), now);
        assert_eq!(steps(&mut turn), []);
        let said = said(&mut turn);
        assert_whole(&said);
        let Some(Message::Results { results }) = said.last() else {
            panic!("no results: {said:?}");
        };
        assert_eq!(results[1].1, ToolResult::failed("stopped; the run goes on"));
    }

    #[test]
    fn a_turn_has_its_time() {
        let now = start();
        let mut turn = asked(TurnLimits::default(), now);
        let end = now + TurnLimits::default().time_max;
        assert_eq!(turn.poll_timeout(), Some(end));
        turn.handle_text("I think");
        turn.handle_timeout(end);
        assert_eq!(steps(&mut turn), [Step::Over(StopReason::Limit)]);
        assert_eq!(said(&mut turn).len(), 1);
    }
}
