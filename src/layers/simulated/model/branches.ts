/**
 * The nodes of a graph on streams: chains of dependencies share a stream, and records and waits connect the streams.
 * Everything is linear in the number of nodes and edges.
 */
import { transferTime } from "./Model.ts"
import type { Model } from "./Model.ts"
import { EventRecord } from "./parts.ts"
import type { Stream } from "./parts.ts"

/** A node among the branches of a launch. */
interface Step {
  /** The branch that it is on. 0 is the stream of the launch. */
  readonly branch: number
  /** True if it begins a branch, without dependencies. */
  readonly isForked: boolean
  /** Nodes that must finish first, other than the one before it on its branch. */
  readonly waits: ReadonlyArray<number>
}

/** Where the nodes of a graph run, in an order in which dependencies come first. */
export interface BranchPlan {
  readonly steps: ReadonlyArray<Step>
  readonly branches: number
  /** True if nodes without dependencies begin branches. */
  readonly forks: boolean
  /** By node, true if another branch waits for it. */
  readonly isAwaited: ReadonlyArray<boolean>
  /** The nodes that the stream of the launch waits for at the end. */
  readonly ends: ReadonlyArray<number>
}

/** Continues the branch of a node's first dependency that is the last on its branch; otherwise begins a branch. */
export const planBranches = (dependencies: ReadonlyArray<ReadonlyArray<number>>): BranchPlan => {
  const steps: Array<Step> = []
  const lastOn: Array<number> = []
  const isAwaited = dependencies.map(() => false)
  const isLast = dependencies.map(() => true)
  for (const [index, own] of dependencies.entries()) {
    const before = own.find((node) => lastOn[steps[node]!.branch] === node)
    const branch = before === undefined ? lastOn.length : steps[before]!.branch
    const waits = own.filter((node) => node !== before)
    for (const node of own) isLast[node] = false
    for (const node of waits) isAwaited[node] = true
    steps.push({ branch, waits, isForked: own.length === 0 && branch !== 0 })
    lastOn[branch] = index
  }
  const ends = steps.flatMap(({ branch }, index) => isLast[index]! && branch !== 0 ? [index] : [])
  for (const node of ends) isAwaited[node] = true
  return { steps, branches: lastOn.length, forks: steps.some(({ isForked }) => isForked), isAwaited, ends }
}

/** Enqueues something on a stream. */
export type Enqueue = (stream: Stream) => void

/**
 * Enqueues the work of each node after the work of a stream, which continues after all of them. Returns a record of their end;
 * undefined if one that takes no time ended in a fault, because then the rest never runs.
 */
export const enqueueBranches = (
  model: Model,
  stream: Stream,
  plan: BranchPlan,
  works: ReadonlyArray<Enqueue>
): EventRecord | undefined => {
  const streams = [stream]
  while (streams.length < plan.branches) streams.push(model.createBranch(stream))
  const end = enqueueSteps(model, streams, plan, works)
  for (const branch of streams) if (branch !== stream) model.destroyStream(branch)
  return end
}

const enqueueSteps = (
  model: Model,
  streams: ReadonlyArray<Stream>,
  plan: BranchPlan,
  works: ReadonlyArray<Enqueue>
): EventRecord | undefined => {
  const { world } = model
  const stream = streams[0]!
  const fork = plan.forks ? world.record(stream, true) : undefined
  const records: Array<EventRecord | undefined> = []
  for (const [index, { branch, isForked, waits }] of plan.steps.entries()) {
    const on = streams[branch]!
    if (isForked) hold(model, on, fork)
    for (const node of waits) hold(model, on, records[node])
    works[index]!(on)
    if (stream.device.lost !== 0) return undefined
    records.push(plan.isAwaited[index] ? world.record(on, true) : undefined)
  }
  for (const node of plan.ends) hold(model, stream, records[node])
  return world.record(stream, true)
}

/** Makes a stream's later work wait for a record. */
export const hold = (model: Model, stream: Stream, record: EventRecord | undefined): void => {
  if (record !== undefined && !record.done) model.world.wait(stream, record, true)
}

/** The virtual time to evaluate a condition: what a repetition of a loop takes on an H200, in nanoseconds. */
const conditionTime = 4500

/**
 * Enqueues a condition. When the stream reaches it, `choose` is asked for a body to enqueue, once, or again after each body until it
 * returns none. Later work of the stream starts after the bodies.
 */
export const enqueueCondition = (
  model: Model,
  stream: Stream,
  choose: () => Enqueue | undefined,
  repeats: boolean
): void => {
  const { world } = model
  const over = new EventRecord(stream)
  const evaluate = (on: Stream) => model.work(on, { duration: conditionTime, act: () => turn() })
  const turn = () => {
    const body = choose()
    if (body === undefined) return world.finishRecord(over)
    const branch = model.createBranch(stream)
    body(branch)
    if (repeats) evaluate(branch)
    else world.watch(world.record(branch, true), model, true, () => world.finishRecord(over))
    model.destroyStream(branch)
  }
  evaluate(stream)
  world.wait(stream, over, true)
}

/** What work waits for, and how it goes on. */
interface Waiting {
  readonly waitsFor: string
  readonly begin: (resume: (rest: Rest) => void) => void
}

interface Rest {
  readonly nanoseconds: number
  readonly linkBytes: number
  readonly act: () => void
}

/** Enqueues work that may have to wait once the stream has reached it. When the wait is over, it takes its time, and the stream continues. */
export const enqueueWaiting = (
  model: Model,
  stream: Stream,
  duration: number,
  act: () => Waiting | undefined
): void => {
  const { world } = model
  model.workUntil(stream, duration, (end) => {
    const waiting = act()
    let isResumed = false
    waiting?.begin(({ act, linkBytes, nanoseconds }) => {
      if (isResumed) return
      isResumed = true
      const duration = nanoseconds + transferTime(linkBytes, stream.device.traits.peerBandwidth)
      const branch = model.createBranch(stream)
      model.work(branch, { duration, act })
      world.watch(world.record(branch, true), model, true, end)
      model.destroyStream(branch)
    })
    return waiting?.waitsFor
  })
}
