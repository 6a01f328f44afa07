/**
 * What a checker does with its findings: which it keeps, and whether they fail, are logged, or are only collected.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { CudaError } from "../../CudaError.ts"
import type { ArrayWatch, KernelRef, MemoryRange, MemoryRef, StreamRef } from "../CudaRuntime.ts"
import { evaluate } from "../shared/operation.ts"
import { StreamResource } from "../shared/resources.ts"
import { Checks } from "./Checks.ts"
import type { Use, Where, Work } from "./Checks.ts"
import { ArrayCopies } from "./Copies.ts"
import { explainArrayWrite, explainFreed, explainHost, explainHostWrite, printWhere } from "./explain.ts"
import { FreedMemory } from "./FreedMemory.ts"
import { OrderedHandles } from "./handles.ts"
import { HostMemory } from "./HostMemory.ts"
import { accessesOf, describeBytes, leftover } from "./reports.ts"
import type { Race, Report, UsedAfterRelease } from "./reports.ts"
import type { Known, Timeline } from "./timelines.ts"
import type { Tracer } from "./Tracer.ts"
import { Turns } from "./Turns.ts"
import { readLaunch } from "./uses.ts"
import type { Collected, RawUse } from "./uses.ts"

/** Whether the operations of a region are left unchecked. */
const CurrentUnchecked = Context.Reference<boolean>("effect-cuda/layers/CheckedRuntime/CurrentUnchecked", {
  defaultValue: () => false
})

/** Whether there was such a region: reading a reference on every operation costs more than this. */
let isUsed = false

export const unchecked = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.suspend(() => {
    isUsed = true
    return Effect.provideService(self, CurrentUnchecked, true)
  })

export interface WatchOptions {
  readonly mode: "fail" | "log" | "collect"
  readonly stacks: boolean
  readonly events: boolean
  readonly hostAccess: boolean
  readonly accessOrder: boolean
  /** The most bytes that one operation reads of which a whole copy is kept, to find writes by the host; undefined to find none. */
  readonly hostWrites: number | undefined
  readonly ignore: ((report: Report) => boolean) | undefined
  readonly onReport: ((report: Report) => void) | undefined
  readonly tracer?: Tracer | undefined
}

/** What could not be known, and counts as ordered. */
export interface Unknowns {
  rawAddresses: number
  foreignEvents: number
  hostLooks: number
  largeGraphs: number
  readonly hostReads: number
}

/** Work that uses raw addresses. */
export interface RawWork {
  readonly operation: string
  readonly raw: ReadonlyArray<RawUse>
  readonly where: Where | undefined
}

type Run<A = void> = Effect.Effect<A, CudaError>

/** The most reports that are kept. */
const mostReports = 1000

const noUses: ReadonlyArray<Use> = []

export class Watcher {
  readonly checks = new Checks()
  readonly handles = new OrderedHandles(this.checks.timelines)
  readonly turns = new Turns()
  readonly freed = new FreedMemory()
  readonly options: WatchOptions
  /** The memory of the host that work reads, if writes by the host are looked for. */
  readonly host: HostMemory | undefined
  /** Who follows all work, if anybody does. */
  readonly tracer: Tracer | undefined
  readonly unknown: Unknowns
  readonly reports: Array<Report> = []
  /** The line of the call that is being evaluated, with `stacks`. */
  line: Where | undefined
  /** Reports beyond those that are kept. */
  dropped = 0
  /** The resources that are not released, with the operations that made them. */
  readonly #made = new Map<object, { readonly operation: string; readonly where: Where | undefined }>()

  constructor(options: WatchOptions) {
    const { checks } = this
    const host = options.hostWrites === undefined ? undefined : new HostMemory(options.hostWrites)
    this.options = options
    this.host = host
    this.tracer = options.tracer
    this.unknown = {
      rawAddresses: 0,
      foreignEvents: 0,
      hostLooks: 0,
      largeGraphs: 0,
      get hostReads() {
        return host?.unwatched ?? 0
      }
    }
    checks.watchesHost = host !== undefined
    if (host !== undefined) checks.timelines.onFinish = () => host.finished()
  }

  /** Where in the program the current operation is. */
  get where(): Where | undefined {
    return this.line ?? currentFrame()
  }

  /**
   * The timeline of a stream on which an operation may repeat an earlier one. See `Checks.repeated`. Who follows all work sees each operation
   * by itself.
   */
  repeating(stream: StreamRef): Timeline | undefined {
    if (this.tracer !== undefined || (isUsed && this.isUnchecked) || !this.checks.canRepeat) return undefined
    return this.checks.knownTimeline(stream)
  }

  get isUnchecked(): boolean {
    return isUsed && Fiber.getCurrent()?.getRef(CurrentUnchecked) === true
  }

  /** Enqueues work that uses memory. */
  enqueue<A>(
    operation: string,
    stream: StreamRef,
    uses: ReadonlyArray<Use>,
    inner: Run<A>,
    next?: () => void
  ): Run<A> {
    const { checks } = this
    const fiber = Fiber.getCurrent()
    const isUnchecked = isUsed && fiber?.getRef(CurrentUnchecked) === true
    const where = this.line ?? fiber?.cache.stackFrame
    const timeline = checks.timelineOf(stream)
    const work = { operation, uses: isUnchecked ? noUses : uses, where, isVoid: false }
    const known = checks.knownBy(timeline, work)
    this.host?.before(uses)
    const reports = checks.find(timeline, known, work)
    return reports.length === 0
      ? this.#run(stream, timeline, work, known, uses, inner, next)
      : this.#runAfter(reports, stream, timeline, work, known, uses, inner, next)
  }

  enqueueCollected(
    stream: StreamRef,
    { operation, raw, uses }: Collected,
    inner: Run,
    next?: () => void
  ): Run {
    if (raw.length > 0) {
      this.unknown.rawAddresses += raw.length
      const reports = this.findFreed(stream, [{ operation, raw, where: this.where }])
      if (reports.length > 0) {
        const goOn = Effect.suspend(() => this.enqueue(operation, stream, uses, inner, next))
        return this.meet(operation, stream.deviceIndex, reports, goOn)
      }
    }
    return this.enqueue(operation, stream, uses, inner, next)
  }

  /** Reports raw addresses in memory that was released. */
  findFreed(stream: StreamRef, works: ReadonlyArray<RawWork>): ReadonlyArray<Report> {
    if (this.freed.size === 0) return []
    const name = String(stream)
    return works.flatMap((work) =>
      work.raw.flatMap((use) => {
        const freed = this.freed.find(use.address)
        return freed === undefined ? [] : [explainFreed(freed, use, work, name)]
      })
    )
  }

  /** The raw addresses in the work of recordings, and in that of graphs. */
  readonly rawOf = new WeakMap<object, Array<RawWork>>()

  /** Notes the raw addresses of a launch that is recorded: graphs use them when they are launched. */
  recordRaw(stream: StreamRef, kernel: KernelRef, values: ReadonlyArray<unknown>): void {
    const recording = stream instanceof StreamResource ? stream.recording : undefined
    if (recording === undefined || kernel?.module?.state !== "live") return
    const { operation, raw } = readLaunch(kernel, values)
    if (raw.length === 0) return
    const works = this.rawOf.get(recording) ?? []
    this.rawOf.set(recording, works)
    works.push({ operation, raw, where: this.where })
  }

  /** Notes that the program has the address of memory. */
  giveOut(memory: MemoryRef): void {
    this.host?.giveOut(memory)
    this.freed.giveOut(memory)
  }

  /** Reports what is wrong with work, then enqueues it, unless that fails. */
  #runAfter<A>(
    reports: ReadonlyArray<Report>,
    stream: StreamRef,
    timeline: Timeline,
    work: Work,
    known: Known,
    uses: ReadonlyArray<Use>,
    inner: Run<A>,
    next: (() => void) | undefined
  ): Run<A> {
    const goOn = Effect.suspend(() => this.#run(stream, timeline, work, known, uses, inner, next))
    return this.meet(work.operation, stream.deviceIndex, reports, goOn)
  }

  /** Runs an operation, and notes its uses unless it fails. */
  #run<A>(
    stream: StreamRef,
    timeline: Timeline,
    work: Work,
    known: Known,
    uses: ReadonlyArray<Use>,
    inner: Run<A>,
    next: (() => void) | undefined
  ): Run<A> {
    const { tracer } = this
    tracer?.begin(work, stream)
    const result = evaluate(inner)
    const isOver = Exit.isExit(result)
    if (isOver) tracer?.end(work, stream)
    if (isOver && Exit.isFailure(result)) return result
    this.checks.commit(timeline, known, work)
    this.host?.enqueued(timeline, timeline.epoch, known, work, uses)
    tracer?.committed(work, timeline, known, undefined)
    next?.()
    return isOver ? result : endsLater(work, result, tracer, stream)
  }

  /** Reports the writes by the host that were found since the last time. */
  meetHost<A>(operation: string, where: Where | undefined, run: Run<A>): Run<A> {
    const found = this.host?.found.splice(0) ?? []
    const reports = found.map((write) => explainHostWrite(write, operation, where))
    return reports.length === 0 ? run : this.meet(operation, 0, reports, run)
  }

  /** Looks at an array of the program while an operation copies it; undefined if writes by the host are not looked for. */
  watchArray(operation: string, stream: StreamRef): ArrayWatch {
    const { where } = this
    const arrays = new ArrayCopies(this.options.hostWrites ?? 0)
    return {
      keep: (bytes) => arrays.keep(bytes),
      check: (bytes) => arrays.check(bytes),
      end: Effect.suspend(() => {
        const change = arrays.end()
        if (change === undefined) return Effect.void
        const report = explainArrayWrite(change, operation, String(stream), where)
        return this.meet(operation, stream.deviceIndex, [report], Effect.void)
      })
    }
  }

  /** Keeps reports, then fails, or goes on. */
  meet<A>(
    operation: string,
    deviceIndex: number,
    reports: ReadonlyArray<Report>,
    goOn: Run<A>,
    isRelease = false
  ): Run<A> {
    const kept = this.isUnchecked ? [] : reports.filter((report) => this.options.ignore?.(report) !== true)
    for (const report of kept) this.keep(report)
    const [first] = kept.filter(isAboutMemory)
    if (first !== undefined && this.options.mode === "fail") {
      const failed = Effect.fail(errorOf(operation, first, deviceIndex))
      return isRelease ? Effect.andThen(goOn, failed) : failed
    }
    if (kept.length === 0 || this.options.mode === "collect") return goOn
    return Effect.andThen(
      Effect.forEach(kept, ({ message }) => Effect.logWarning(message), { discard: true }),
      goOn
    )
  }

  keep(report: Report): void {
    if (this.reports.length < mostReports) this.reports.push(report)
    else this.dropped++
    this.options.onReport?.(report)
  }

  /** Called when the program looks at memory of the host. */
  look({ byteLength, memory, offset }: MemoryRange, operation: string): void {
    if (!this.options.hostAccess || memory.state !== "live" || this.isUnchecked) return
    const use: Use = { memory, offset, byteLength, kind: "reads", argument: undefined }
    this.tracer?.looks(use, operation, this.where)
    const found = this.checks.findHost(use)
    if (found === undefined) return
    if (!found.isCertain) {
      this.unknown.hostLooks++
      return
    }
    const report = explainHost(found.write, use, operation, this.where)
    if (this.options.ignore?.(report) === true) return
    this.keep(report)
    if (this.options.mode === "fail") throw errorOf(operation, report, 0)
    if (this.options.mode === "log") Effect.runFork(Effect.logWarning(report.message))
  }

  made(resource: object, operation: string, where: Where | undefined): void {
    this.#made.set(resource, { operation, where })
  }

  released(resource: object): void {
    this.#made.delete(resource)
  }

  /** Reports the resources that are left. */
  get leftovers(): ReadonlyArray<Report> {
    return Array.from(
      this.#made,
      ([resource, { operation, where }]) =>
        leftover({ operation, resource: String(resource), frame: printWhere(where) })
    )
  }
}

/** The operation may have enqueued its work by now, or do so later. */
const endsLater = <A>(work: Work, inner: Run<A>, tracer: Tracer | undefined, stream: StreamRef): Run<A> =>
  Effect.onExit(inner, (exit) =>
    Effect.sync(() => {
      tracer?.end(work, stream)
      if (Exit.isFailure(exit)) work.isVoid = true
    }))

const isAboutMemory = (report: Report): report is Race | UsedAfterRelease =>
  report._tag === "Race" || report._tag === "UsedAfterRelease"

/** Whether work on a stream is enqueued now, rather than recorded or refused. */
export const isEnqueued = (stream: StreamRef): boolean => stream?.isRecording === false && stream.state === "live"

/** The failure for a report. */
export const errorOf = (operation: string, report: Race | UsedAfterRelease, deviceIndex: number): CudaError =>
  new CudaError({
    operation,
    deviceIndex,
    subject: describeBytes(report.bytes),
    reason: {
      _tag: "RaceDetected",
      accesses: accessesOf(report),
      fix: report._tag === "Race" ? report.fix : undefined,
      report: report.message
    }
  })

/** Runs an operation, and calls `next` with its result as soon as it is known. */
export const after = <A>(inner: Run<A>, next: (value: A) => void): Run<A> => {
  const result = evaluate(inner)
  if (isSuccess(result)) {
    next(result.value)
    return result
  }
  if (Exit.isExit(result)) return result
  return Effect.map(result, (value) => {
    next(value)
    return value
  })
}

const isSuccess = <A>(run: Run<A>): run is Exit.Success<A, CudaError> => Exit.isExit(run) && Exit.isSuccess(run)

/** The line of a call, with `stacks`. */
export const lineOf = (caller: (...args: ReadonlyArray<never>) => unknown): Where => {
  const trace: { stack?: string } = {}
  const limit = Error.stackTraceLimit
  Error.stackTraceLimit = 20
  Error.captureStackTrace(trace, caller)
  Error.stackTraceLimit = limit
  return { name: "", stack: () => lineIn(trace.stack ?? "") }
}

/** The line of a call, or the span or named function around it, if the call was evaluated later than it was written. */
export const orFrame = (line: Where, frame: Where | undefined): Where => ({
  get name() {
    return line.stack() === undefined ? frame?.name ?? "" : ""
  },
  stack: () => line.stack() ?? frame?.stack()
})

/** The span or named function that the current fiber is in. */
export const currentFrame = (): Where | undefined => Fiber.getCurrent()?.cache.stackFrame

/** The first line of a stack outside this library and Effect. */
const lineIn = (stack: string): string | undefined =>
  stack.split("\n").slice(1).find((line) => !isInside.test(line))?.trim().replace(/^at /, "")

const isInside =
  /node_modules\/effect\/|effect-cuda\/(src|dist)\/|\(?node:|<anonymous>|\/src\/(layers|internal|Cuda\w+\.ts)/
