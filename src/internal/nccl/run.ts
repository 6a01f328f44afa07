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
  MemoryAccess,
  PlacedCall,
  StreamRef
} from "../../layers/CudaRuntime.ts"
import { isStream, rangeOf } from "../given.ts"
import { named } from "../handles.ts"
import { namedNode } from "../node.ts"
import { CurrentAccess } from "../ordered.ts"
import { onStream } from "../place.ts"
import { planOf, running } from "./collective.ts"
import type { CollectiveKind, Job, Plan } from "./collective.ts"
import { goneError } from "./communicator.ts"
import type { CommunicatorRef } from "./communicator.ts"
import { inProgress } from "./library.ts"
import type { Nccl } from "./library.ts"
import { abortCommunicator } from "./lifecycle.ts"
import { functionNames, groupEnd, groupStart, issue, untilReady } from "./native.ts"
import type { NativeCalls } from "./native.ts"
import { bytesOfPlans } from "./simulated.ts"
import type { Meetings } from "./simulated.ts"

type Names = NonNullable<PlacedCall["names"]>

/** Collectives on one stream. The order of the memory is that of the plans. */
class JobImpl implements Job {
  readonly stream: StreamRef
  readonly plans: ReadonlyArray<Plan>
  readonly reads: Job["reads"]
  readonly writes: Job["writes"]
  readonly handles: Job["handles"]
  readonly status: Nccl
  readonly names: Names
  readonly simulate: ForeignSimulation | undefined
  constructor(
    stream: StreamRef,
    plans: ReadonlyArray<Plan>,
    { handles, reads, writes }: Pick<Job, "handles" | "reads" | "writes">,
    names: Names
  ) {
    const { meetings, shared } = plans[0]!.communicator
    this.stream = stream
    this.plans = plans
    this.reads = reads
    this.writes = writes
    this.handles = handles
    this.status = shared.library
    this.names = names
    this.simulate = meetings === undefined ? undefined : simulationOf(meetings, plans)
  }
}

/** A collective that is issued again has its job already. */
const jobOf = (plan: Plan, stream: StreamRef, names: Names): Job => {
  const known = plan.job
  if (known !== undefined && known.stream === stream && known.names === names) return known
  const job = new JobImpl(stream, [plan], plan, names)
  if (stream === plan.place) plan.job = job
  return job
}

const joined = ({ plans, stream }: Job, plan: Plan, names: Names): Job => {
  const all = [...plans, plan]
  const uses = {
    reads: all.flatMap(({ reads }) => reads),
    writes: all.flatMap(({ writes }) => writes),
    handles: Array.from(new Set(all.flatMap(({ handles }) => handles)))
  }
  return new JobImpl(stream, all, uses, names)
}

const nameOne = (kind: CollectiveKind) => ({ operation: running, call: functionNames[kind] })

/** What failures name: the function of a single collective, or the end of a group. */
const namesOf: { readonly [Kind in CollectiveKind]: Names } = {
  allReduce: nameOne("allReduce"),
  broadcast: nameOne("broadcast"),
  reduce: nameOne("reduce"),
  allGather: nameOne("allGather"),
  reduceScatter: nameOne("reduceScatter"),
  send: nameOne("send"),
  receive: nameOne("receive")
}
const inOneGroup = { operation: running, call: "ncclGroupEnd" }

const simulationOf = (meetings: Meetings, plans: ReadonlyArray<Plan>): ForeignSimulation => (reads, writes) => {
  const bytes = bytesOfPlans(plans, reads, writes)
  return meetings.meet(plans, (plan) => bytes.get(plan)!)
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
    const streams: Array<StreamRef> = []
    for (let index = 0; index < plans.length; index++) {
      const { place } = plans[index]!
      if (place === undefined) return issueOnCurrent(plans)
      streams.push(place)
    }
    return issueOn(plans, streams)
  })

/** Some of the streams are the current ones of the devices, or wrong. */
const issueOnCurrent = (plans: ReadonlyArray<Plan>): Effect.Effect<void, CudaError> => {
  if (plans.length === 1) return withStream(plans[0]!, (stream) => issueOn(plans, [stream]))
  return Effect.flatMap(
    Effect.forEach(plans, (plan) => withStream(plan, Effect.succeed)),
    (streams) => issueOn(plans, streams)
  )
}

const refusePlan = ({ communicator }: Plan, first: Plan | undefined): CudaError | undefined => {
  if (communicator.state !== "live") return goneError(running, communicator)
  if (first === undefined || communicator.shared === first.communicator.shared) return undefined
  if (communicator.runtime.identity === first.communicator.runtime.identity) return undefined
  return new CudaError({ operation: running, reason: { _tag: "ForeignResource", resource: String(communicator) } })
}

const withStream = <A>(
  plan: Plan,
  use: (stream: StreamRef) => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> => {
  const { communicator: { deviceIndex, runtime }, stream } = plan
  if (stream === undefined || !isStream(stream)) return onStream(running, runtime, deviceIndex, stream, use)
  const refused = refuseStream(plan.communicator, stream)
  return refused === undefined ? use(stream.ref) : Effect.fail(refused)
}

const refuseStream = (communicator: CommunicatorRef, { ref, runtime }: CudaStream): CudaError | undefined => {
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
const issueOn = (plans: ReadonlyArray<Plan>, streams: ReadonlyArray<StreamRef>): Effect.Effect<void, CudaError> => {
  const jobs: Array<Job> = []
  const names = plans.length === 1 ? namesOf[plans[0]!.kind] : inOneGroup
  let isPolled = false
  let isRecording = false
  for (let index = 0; index < plans.length; index++) {
    const plan = plans[index]!
    const stream = streams[index]!
    plan.communicator.usedOn(stream)
    isPolled ||= plan.isPolled
    isRecording ||= stream.isRecording
    if (streams.indexOf(stream) === index) jobs.push(jobOf(plan, stream, names))
    else addTo(jobs, plan, stream, names)
  }
  if (isPolled) return locked(jobs, issueTogether(jobs))
  const first = jobs[0]!
  if (jobs.length > 1) return isRecording ? issueTogether(jobs) : enqueueAll(jobs)
  const issued = enqueueOne(first)
  return isRecording ? namedNode(issued, first.plans[0]!.kind) : issued
}

const addTo = (jobs: Array<Job>, plan: Plan, stream: StreamRef, names: Names): void => {
  const index = jobs.findIndex((job) => job.stream === stream)
  jobs[index] = joined(jobs[index]!, plan, names)
}

/** One group on several streams. */
const enqueueAll = (jobs: ReadonlyArray<Job>): Effect.Effect<void, CudaError> => {
  const { runtime, shared: { native } } = jobs[0]!.plans[0]!.communicator
  if (native === undefined) return runtime.memoryEnqueueAll(jobs, () => {})
  return runtime.memoryEnqueueAll(jobs, (streams) => callAll(native, jobs, streams))
}

const callAll = (native: NativeCalls, jobs: ReadonlyArray<Job>, streams: ReadonlyArray<number>): number => {
  let status = groupStart(native)
  if (status !== 0) return status
  for (let index = 0; index < jobs.length; index++) {
    status = issueIn(native, jobs[index]!.plans, streams[index]!, status)
  }
  return groupEnd(native, status)
}

/** Returns the first failure in a group. */
const issueIn = (native: NativeCalls, plans: ReadonlyArray<Plan>, stream: number, status: number): number => {
  for (let index = 0; index < plans.length; index++) {
    const code = issue(native, plans[index]!, stream)
    if (code !== inProgress) status ||= code
  }
  return status
}

/** One call, as any other that enqueues work: its memory is checked, ordered and captured. */
const enqueueOne = (job: Job): Effect.Effect<void, CudaError> => {
  const { plans, stream } = job
  const { runtime, shared: { native } } = plans[0]!.communicator
  if (native === undefined) return runtime.memoryEnqueue(job, () => {}, stream)
  return runtime.memoryEnqueue(job, (handle) => callOne(native, plans, handle), stream)
}

/** A single call needs no group. */
const callOne = (native: NativeCalls, plans: ReadonlyArray<Plan>, stream: number): number => {
  if (plans.length === 1) return issue(native, plans[0]!, stream)
  const status = groupStart(native)
  return status === 0 ? groupEnd(native, issueIn(native, plans, stream, 0)) : status
}

/** Holds the communicators that must be ready for another call. */
const locked = (jobs: ReadonlyArray<Job>, self: Effect.Effect<void, CudaError>): Effect.Effect<void, CudaError> =>
  [...polledIn(jobs)]
    .sort((one, other) => other.number - one.number)
    .reduce((held, { lock }) => lock.withPermit(held), self)

const polledIn = (jobs: ReadonlyArray<Job>): ReadonlySet<CommunicatorRef> =>
  new Set(jobs.flatMap(({ plans }) => plans.filter(({ isPolled }) => isPolled).map(({ communicator }) => communicator)))

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
  const { handles, reads, simulate, stream, writes } = job
  const ranges = { reads: reads.map(rangeOf), writes: writes.map(rangeOf), handles }
  const access: MemoryAccess = { ...ranges, stream, outer }
  const rest = (capture: CaptureRef) => within(jobs, index + 1, [...captures, capture], access)
  const captured = capturing(runtime, { ...ranges, simulate }, stream, rest)
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
  const called = runtime.libraryTurn(library.ref, calls, deviceIndex).pipe(named(running))
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
  if (!jobs.some(({ plans }) => plans.some(({ isPolled }) => isPolled === arePolled))) return 0
  let status = groupStart(native)
  if (status !== 0) return status
  for (const [index, { plans }] of jobs.entries()) {
    const ofKind = plans.filter(({ isPolled }) => isPolled === arePolled)
    status = issueIn(native, ofKind, captures[index]!.handle!, status)
  }
  status = groupEnd(native, status)
  return arePolled && status === inProgress ? 0 : status
}
