/**
 * Issuing collectives: checked, in the order of their streams, and as one group in one turn of the event loop.
 */
import * as Effect from "effect/Effect"
import { CudaError } from "../../CudaError.ts"
import type { CudaStream } from "../../CudaStream.ts"
import type {
  CaptureRef,
  CudaRuntimeService,
  ForeignSimulation,
  LibraryHandleRef,
  MemoryAccess,
  StreamRef
} from "../../layers/CudaRuntime.ts"
import { isStream, rangeOf } from "../given.ts"
import { named } from "../handles.ts"
import { namedNode } from "../node.ts"
import { CurrentAccess } from "../ordered.ts"
import { onStream } from "../place.ts"
import { planOf, running } from "./collective.ts"
import type { Plan } from "./collective.ts"
import { goneError } from "./communicator.ts"
import type { CommunicatorRef } from "./communicator.ts"
import { inProgress, reasonOf } from "./library.ts"
import { abortCommunicator } from "./lifecycle.ts"
import { functionNames, groupEnd, groupStart, inGroup, issue, lastWords, untilReady } from "./native.ts"
import type { NativeCalls } from "./native.ts"
import { bytesOfPlans } from "./simulated.ts"

/** Collectives on one stream. */
interface Job {
  readonly stream: StreamRef
  readonly plans: ReadonlyArray<Plan>
}

/** Checks collectives, finds their streams, and issues them. */
export const runAll = (collectives: ReadonlyArray<unknown>): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    const plans: Array<Plan> = []
    for (let index = 0; index < collectives.length; index++) {
      const plan = planOf(collectives[index], index)
      if (plan instanceof CudaError) return Effect.fail(plan)
      const refused = refusePlan(plan, plans[0])
      if (refused !== undefined) return Effect.fail(refused)
      plans.push(plan)
    }
    if (plans.length === 0) return Effect.void
    if (plans.length === 1) return withStream(plans[0]!, (stream) => issueJobs([{ stream, plans }]))
    if (!plans.every(({ stream }) => isStream(stream))) return issueOnCurrent(plans)
    const streams: Array<StreamRef> = []
    for (const plan of plans) {
      const refused = refuseStream(plan, plan.stream!)
      if (refused !== undefined) return Effect.fail(refused)
      streams.push(plan.stream!.ref)
    }
    return issueJobs(jobsOf(plans, streams))
  })

/** Some of the streams are the current ones of the devices. */
const issueOnCurrent = (plans: ReadonlyArray<Plan>): Effect.Effect<void, CudaError> =>
  Effect.flatMap(
    Effect.forEach(plans, (plan) => withStream(plan, Effect.succeed)),
    (streams) => issueJobs(jobsOf(plans, streams))
  )

const refusePlan = ({ communicator }: Plan, first: Plan | undefined): CudaError | undefined => {
  if (communicator.state !== "live") return goneError(running, communicator)
  const runtime = first?.communicator.runtime ?? communicator.runtime
  if (communicator.runtime.identity === runtime.identity) return undefined
  return new CudaError({ operation: running, reason: { _tag: "ForeignResource", resource: String(communicator) } })
}

const withStream = <A>(
  plan: Plan,
  use: (stream: StreamRef) => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> => {
  const { communicator: { deviceIndex, runtime }, stream } = plan
  if (stream === undefined || !isStream(stream)) return onStream(running, runtime, deviceIndex, stream, use)
  const refused = refuseStream(plan, stream)
  return refused === undefined ? use(stream.ref) : Effect.fail(refused)
}

const refuseStream = ({ communicator }: Plan, { ref, runtime }: CudaStream): CudaError | undefined => {
  const { deviceIndex } = communicator
  if (runtime.identity !== communicator.runtime.identity) {
    return new CudaError({ operation: running, reason: { _tag: "ForeignResource", resource: String(ref) } })
  }
  if (ref.deviceIndex === deviceIndex) return undefined
  const deviceIndices = [deviceIndex, ref.deviceIndex] as const
  const resources = [String(communicator), String(ref)] as const
  return new CudaError({ operation: running, reason: { _tag: "DeviceMismatch", resources, deviceIndices } })
}

/** There are few streams. */
const jobsOf = (plans: ReadonlyArray<Plan>, streams: ReadonlyArray<StreamRef>): ReadonlyArray<Job> => {
  const jobs: Array<{ readonly stream: StreamRef; readonly plans: Array<Plan> }> = []
  for (let index = 0; index < plans.length; index++) {
    const stream = streams[index]!
    const job = jobs.find((known) => known.stream === stream)
    if (job === undefined) jobs.push({ stream, plans: [plans[index]!] })
    else job.plans.push(plans[index]!)
  }
  return jobs
}

/** Whether a plan is issued by a non-blocking communicator, and is on its stream only once that is ready. */
const isPolled = ({ communicator: { direct, shared }, kind }: Plan): boolean =>
  shared.native !== undefined && (direct === undefined || kind === "send" || kind === "receive")

const handleOf = (plan: Plan): LibraryHandleRef =>
  isPolled(plan) ? plan.communicator.joint : plan.communicator.direct ?? plan.communicator.joint

const issueJobs = (jobs: ReadonlyArray<Job>): Effect.Effect<void, CudaError> => {
  const [first] = jobs as readonly [Job]
  for (let index = 0; index < jobs.length; index++) {
    const { plans, stream } = jobs[index]!
    for (let at = 0; at < plans.length; at++) plans[at]!.communicator.usedOn(stream)
  }
  if (jobs.some(mustWait)) return locked(jobs, issueTogether(jobs))
  if (jobs.length > 1) return jobs.some(({ stream }) => stream.isRecording) ? issueTogether(jobs) : enqueueAll(jobs)
  const issued = enqueueNow(first)
  return first.stream.isRecording ? namedNode(issued, first.plans[0]!.kind) : issued
}

const mustWait = ({ plans }: Job): boolean => plans.some(isPolled)

/** One group on several streams. */
const enqueueAll = (jobs: ReadonlyArray<Job>): Effect.Effect<void, CudaError> => {
  const { runtime, shared } = jobs[0]!.plans[0]!.communicator
  const { native } = shared
  const works = jobs.map((job) => {
    // A spread copy would take longer than the rest.
    const { handles, reads, writes } = usesOf(job)
    const { stream } = job
    return { reads, writes, handles, stream, status: shared.library, names: inOneGroup, simulate: simulationOf(job) }
  })
  if (native === undefined) return runtime.memoryEnqueueAll(works, () => {})
  const calls = (streams: ReadonlyArray<number>) => {
    let status = groupStart(native)
    if (status !== 0) return status
    for (let index = 0; index < jobs.length; index++) {
      for (const plan of jobs[index]!.plans) status ||= issue(native, plan, handleOf(plan).handle!, streams[index]!)
    }
    return groupEnd(native, status)
  }
  return explained(native, runtime.memoryEnqueueAll(works, calls))
}

const inOneGroup = { operation: running, call: "ncclGroupEnd" } as const

/** One call, as any other that enqueues work: its memory is checked, ordered and captured. */
const enqueueNow = (job: Job): Effect.Effect<void, CudaError> => {
  const { plans, stream } = job
  const [{ communicator: { runtime, shared }, kind }] = plans as readonly [Plan]
  const { native } = shared
  const names = { operation: running, call: plans.length === 1 ? functionNames[kind] : "ncclGroupEnd" }
  const { handles, reads, writes } = usesOf(job)
  const work = { reads, writes, handles, status: shared.library, names, simulate: simulationOf(job) }
  if (native === undefined) return runtime.memoryEnqueue(work, () => {}, stream)
  return explained(native, runtime.memoryEnqueue(work, (handle) => callAll(native, plans, handle), stream))
}

const callAll = (native: NativeCalls, plans: ReadonlyArray<Plan>, stream: number): number => {
  const call = (plan: Plan) => issue(native, plan, handleOf(plan).handle!, stream)
  return plans.length === 1 ? call(plans[0]!) : inGroup(native, plans.map((plan) => () => call(plan)))
}

/** The memory and the handles of a job. The order of the memory is that of its plans. */
const usesOf = ({ plans }: Job) => {
  const [first] = plans as readonly [Plan]
  if (plans.length === 1) {
    return {
      reads: first.from === undefined ? [] : [first.from],
      writes: first.to === undefined ? [] : [first.to],
      handles: [handleOf(first)]
    }
  }
  return {
    reads: plans.flatMap(({ from }) => from === undefined ? [] : [from]),
    writes: plans.flatMap(({ to }) => to === undefined ? [] : [to]),
    handles: Array.from(new Set(plans.map(handleOf)))
  }
}

const simulationOf = ({ plans }: Job): ForeignSimulation | undefined => {
  const { meetings } = plans[0]!.communicator
  if (meetings === undefined) return undefined
  return (reads, writes) => {
    const bytes = bytesOfPlans(plans, reads, writes)
    return meetings.meet(plans, (plan) => bytes.get(plan)!)
  }
}

/** Holds the communicators that must be ready for another call. */
const locked = (jobs: ReadonlyArray<Job>, self: Effect.Effect<void, CudaError>): Effect.Effect<void, CudaError> =>
  [...polledIn(jobs)]
    .sort((one, other) => other.number - one.number)
    .reduce((held, { lock }) => lock.withPermit(held), self)

const polledIn = (jobs: ReadonlyArray<Job>): ReadonlySet<CommunicatorRef> =>
  new Set(jobs.flatMap(({ plans }) => plans.filter(isPolled).map(({ communicator }) => communicator)))

/** Work on several streams, and work that is on its stream only later, is an access of its memory until then. */
const issueTogether = (jobs: ReadonlyArray<Job>): Effect.Effect<void, CudaError> =>
  Effect.withFiber((fiber) => within(jobs, 0, [], fiber.getRef(CurrentAccess)))

const within = (
  jobs: ReadonlyArray<Job>,
  index: number,
  captures: ReadonlyArray<CaptureRef>,
  outer: MemoryAccess | undefined
): Effect.Effect<void, CudaError> => {
  const job = jobs[index]
  if (job === undefined) return issueAll(jobs, captures)
  const { runtime } = job.plans[0]!.communicator
  const { handles, reads, writes } = usesOf(job)
  const ranges = { reads: reads.map(rangeOf), writes: writes.map(rangeOf), handles }
  const access: MemoryAccess = { ...ranges, stream: job.stream, outer }
  const rest = (capture: CaptureRef) => within(jobs, index + 1, [...captures, capture], access)
  const captured = capturing(runtime, { ...ranges, simulate: simulationOf(job) }, job.stream, rest)
  return Effect.uninterruptibleMask((restore) =>
    Effect.onExit(
      restore(Effect.andThen(runtime.memoryBegin(access), captured)),
      () => runtime.memoryEnd(access)
    )
  )
}

/** What was captured is dropped if the calls fail. */
const capturing = (
  runtime: CudaRuntimeService,
  work: Parameters<CudaRuntimeService["graphCapture"]>[0],
  stream: StreamRef,
  rest: (capture: CaptureRef) => Effect.Effect<void, CudaError>
): Effect.Effect<void, CudaError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(runtime.graphCapture(work, stream), (capture) =>
      Effect.onError(
        Effect.andThen(restore(rest(capture)), runtime.graphEndCapture(capture)),
        () => Effect.ignore(runtime.graphAbandonCapture(capture))
      ))
  )

/** Makes all calls in one turn. A communicator that does not become ready is aborted: nothing else can be done with it. */
const issueAll = (jobs: ReadonlyArray<Job>, captures: ReadonlyArray<CaptureRef>): Effect.Effect<void, CudaError> => {
  const { deviceIndex, shared: { library, native, runtime } } = jobs[0]!.plans[0]!.communicator
  if (native === undefined) return Effect.void
  const polled = [...polledIn(jobs)]
  const calls = () => callGroup(native, jobs, captures, false) || callGroup(native, jobs, captures, true)
  const called = explained(native, runtime.libraryTurn(library.ref, calls, deviceIndex)).pipe(named(running))
  return Effect.uninterruptibleMask((restore) =>
    Effect.suspend(() => {
      const gone = jobs.flatMap(({ plans }) => plans).find(({ communicator }) => communicator.state !== "live")
      if (gone !== undefined) return goneError(running, gone.communicator)
      if (polled.length === 0) return called
      const ready = untilReady(native, running, polled.map(({ joint }) => joint))
      return Effect.andThen(
        called,
        Effect.onError(restore(ready), () =>
          Effect.forEach(polled, (ref) => abortCommunicator(ref), { discard: true, concurrency: "unbounded" }))
      )
    })
  )
}

/** Makes the calls of one kind of communicator: a group cannot mix them. */
const callGroup = (
  native: NativeCalls,
  jobs: ReadonlyArray<Job>,
  captures: ReadonlyArray<CaptureRef>,
  arePolled: boolean
): number => {
  const calls = jobs.flatMap(({ plans }, index) =>
    plans.filter((plan) => isPolled(plan) === arePolled).map((plan) => () =>
      issue(native, plan, handleOf(plan).handle!, captures[index]!.handle!)
    )
  )
  if (calls.length === 0) return 0
  const status = inGroup(native, calls)
  return arePolled && status === inProgress ? 0 : status
}

/** Adds the last words of NCCL to failures of it. */
const explained = <A>(native: NativeCalls, self: Effect.Effect<A, CudaError>): Effect.Effect<A, CudaError> =>
  Effect.mapError(self, (error) =>
    error.reason._tag === "LibraryFailed"
      ? new CudaError({ ...error, reason: reasonOf(error.reason.code, lastWords(native)) })
      : error)
