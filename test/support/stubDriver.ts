/**
 * The stub driver (`stub/driver.c`) for tests: builds it with the system's C compiler, controls it, reads its log, and runs
 * programs on a native runtime loaded from it.
 */
import { afterAll, assert } from "@effect/vitest"
import type { CudaError } from "effect-cuda/CudaError"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as NativeRuntime from "effect-cuda/NativeRuntime"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import type * as Scope from "effect/Scope"
import koffi from "koffi"
import { copyFileSync, rmSync } from "node:fs"
import type { DriverFunctionName, OptionalDriverFunctionName } from "../../src/cuda/functions.ts"
import { buildLibrary } from "./stub/build.ts"

/** Compiles the stub with these macros, once per source, and returns the library's path. */
export const buildStub = (macros: ReadonlyArray<string> = []): string => buildLibrary("driver.c", "libcuda", macros)

/** A function of the driver. */
export type StubFunctionName = DriverFunctionName | OptionalDriverFunctionName

/** A driver call. */
export interface DriverCall {
  readonly name: StubFunctionName
  /** Inputs, and outputs if the call succeeded, in parameter order. */
  readonly args: ReadonlyArray<number | string>
  readonly status: number
  /** The current context of the calling thread; 0 for none. */
  readonly context: number
  /** Whether it was made on the thread that reset the stub. */
  readonly main: boolean
  /** How many times it was made in a row. */
  readonly times: number
}

const liveKinds = [
  "streams",
  "events",
  "pools",
  "registrations",
  "allocations",
  "contexts",
  "busyStreams",
  "libraries",
  "graphs",
  "graphExecs",
  "greenContexts"
] as const

/** Live resources of the driver; `contexts` counts retains. */
export type DriverLive = Record<(typeof liveKinds)[number], number>

/** No live resources. */
export const nothingLive: DriverLive = {
  streams: 0,
  events: 0,
  pools: 0,
  registrations: 0,
  allocations: 0,
  contexts: 0,
  busyStreams: 0,
  libraries: 0,
  graphs: 0,
  graphExecs: 0,
  greenContexts: 0
}

const bind = (path: string) => {
  const library = koffi.load(path)
  const bound = (name: string, result: string, parameters: ReadonlyArray<string>) =>
    library.func(name, result, [...parameters])
  return {
    reset: bound("stub_reset", "void", []),
    log: bound("stub_log", "str", []),
    logClear: bound("stub_log_clear", "void", []),
    fail: bound("stub_fail", "void", ["str", "int", "int", "int"]),
    failuresLeft: bound("stub_failures_left", "int", []),
    setDevices: bound("stub_set_devices", "void", ["int"]),
    hidePools: bound("stub_hide_pools", "void", ["int"]),
    setUnlinked: bound("stub_set_unlinked", "void", ["int"]),
    setVersion: bound("stub_set_version", "void", ["int"]),
    setMemory: bound("stub_set_memory", "void", ["uint64_t"]),
    setPriorities: bound("stub_set_priorities", "void", ["int", "int"]),
    setPending: bound("stub_set_pending", "void", ["int"]),
    fault: bound("stub_fault", "void", ["int"]),
    currentFault: bound("stub_current_fault", "int", []),
    work: bound("stub_work", "void", ["uint64_t", "int"]),
    finish: bound("stub_finish", "int", ["uint64_t", "int", "int"]),
    finishAll: bound("stub_finish_all", "int", []),
    holdHosts: bound("stub_hold_hosts", "void", ["int"]),
    holdLoads: bound("stub_hold_loads", "void", ["int"]),
    setAttribute: bound("stub_set_attribute", "void", ["int", "int"]),
    refuseGraph: bound("stub_refuse_graph", "void", ["int", "int"]),
    blocked: bound("stub_blocked", "int", []),
    hostCalls: bound("stub_host_calls", "int", ["int"]),
    live: bound("stub_live", "int", ["int"]),
    misuses: bound("stub_misuses", "int", []),
    misuse: bound("stub_misuse", "str", []),
    calls: bound("stub_calls", "double", []),
    pushForeign: bound("stub_push_foreign", "uint64_t", []),
    popForeign: bound("stub_pop_foreign", "void", []),
    current: bound("stub_current", "uint64_t", []),
    depth: bound("stub_depth", "int", []),
    foreignStream: bound("stub_foreign_stream", "uint64_t", ["int", "uint32_t", "int"]),
    hideRanges: bound("stub_hide_ranges", "void", ["int"]),
    remoteEvent: bound("stub_remote_event", "int", ["void *"]),
    remoteMemory: bound("stub_remote_memory", "void", ["void *", "uint64_t"]),
    remoteFinish: bound("stub_remote_finish", "void", ["int"]),
    fill: bound("cuMemsetD8Async", "int", ["uint64_t", "uint8_t", "size_t", "uint64_t"]),
    allocate: bound("cuMemAllocFromPoolAsync", "int", ["void *", "size_t", "uint64_t", "uint64_t"]),
    free: bound("cuMemFreeAsync", "int", ["uint64_t", "uint64_t"])
  }
}

type StreamLike = { readonly handle: number; readonly deviceIndex: number }

const pendingMasks = { nothing: 0, copies: 1, memory: 2, everything: 7, kernels: 4 } as const

/** One loaded stub driver. */
export class StubDriver {
  readonly path: string
  /** Every function called since the library was loaded. */
  readonly seen = new Set<StubFunctionName>()
  readonly #control: ReturnType<typeof bind>

  constructor(path: string) {
    this.path = path
    this.#control = bind(path)
    this.#control.reset()
  }

  /** Resets the stub: no live resources, log or settings. */
  reset(): void {
    this.calls()
    this.#control.reset()
  }

  /** The calls since the last `clear`. */
  calls(name?: StubFunctionName): ReadonlyArray<DriverCall> {
    const text: string = this.#control.log()
    const calls = text.split("\n").filter((line) => line !== "").map((line): DriverCall => JSON.parse(line))
    for (const call of calls) this.seen.add(call.name)
    return name === undefined ? calls : calls.filter((call) => call.name === name)
  }

  /** The calls since the last `clear`, each as its name and arguments. */
  lines(): ReadonlyArray<ReadonlyArray<number | string>> {
    return this.calls().map(({ args, name }) => [name, ...args])
  }

  clear(): void {
    this.calls()
    this.#control.logClear()
  }

  /** The number of calls since the last reset. */
  get callCount(): number {
    return this.#control.calls()
  }

  /** Makes a function return a status without doing its work: `times` calls (-1: all) after the next `after` calls. */
  fail(name: StubFunctionName, status: number, { after = 0, times = 1 } = {}): void {
    this.#control.fail(name, status, after, times)
  }

  /** Injected failures that have not happened yet. */
  get failuresLeft(): number {
    return this.#control.failuresLeft()
  }

  set devices(count: number) {
    this.#control.setDevices(count)
  }

  /** Whether devices cannot access each other. */
  set unlinked(unlinked: boolean) {
    this.#control.setUnlinked(unlinked ? 1 : 0)
  }

  set version(version: number) {
    this.#control.setVersion(version)
  }

  set memory(bytes: number) {
    this.#control.setMemory(bytes)
  }

  set priorities({ greatest, least }: { readonly least: number; readonly greatest: number }) {
    this.#control.setPriorities(least, greatest)
  }

  /** Work that stays pending until it is finished. */
  set pending(what: keyof typeof pendingMasks) {
    this.#control.setPending(pendingMasks[what])
  }

  /** Fills device memory as other native code does; returns the status. */
  nativeFill(stream: number, { address, byteLength }: DeviceBuffer, value: number): number {
    return this.#control.fill(address, value, byteLength, stream)
  }

  /** Allocates memory in the order of a stream as other native code does; returns the status. */
  nativeAllocate(stream: number, pool: number, byteLength: number): number {
    return this.#control.allocate(new BigUint64Array(1), byteLength, pool, stream)
  }

  /** Device memory that other native code allocates, in the order of a stream. Returns its address, and what frees it. */
  nativeMemory(
    stream: number,
    pool: number,
    byteLength: number
  ): { readonly address: number; readonly free: () => void } {
    const out = new BigUint64Array(1)
    const status: number = this.#control.allocate(out, byteLength, pool, stream)
    assert.strictEqual(status, 0)
    return {
      address: Number(out[0]),
      free: () => assert.strictEqual(this.#control.free(Number(out[0]), stream), 0)
    }
  }

  /** The address of a buffer's memory. */
  addressOf(buffer: ArrayBuffer): number {
    return Number(koffi.address(buffer))
  }

  /** Whether device memory counts as memory in no pool, like that of `cuMemAlloc`. */
  set hidesPools(hidden: boolean) {
    this.#control.hidePools(hidden ? 1 : 0)
  }

  /** Whether the driver does not know the range of device memory. */
  set hidesRanges(hidden: boolean) {
    this.#control.hideRanges(hidden ? 1 : 0)
  }

  /** Makes every call return this status from now on. */
  set fault(status: number) {
    this.#control.fault(status)
  }
  get fault(): number {
    return this.#control.currentFault()
  }

  /** Enqueues work on a stream that stays pending, like a long kernel. */
  work(stream: StreamLike): void {
    this.#control.work(stream.handle, stream.deviceIndex)
  }

  /** Finishes the first `count` pieces of pending work of a stream, by default all; returns how many there were. */
  finish(stream: StreamLike, count = -1): number {
    return this.#control.finish(stream.handle, stream.deviceIndex, count)
  }

  finishAll(): number {
    return this.#control.finishAll()
  }

  /** Finishes all work, and holds none from now on. */
  letGo(): void {
    this.pending = "nothing"
    this.holdsHostFunctions = false
    this.holdsLoads = false
    this.finishAll()
  }

  /** Whether host functions that streams have reached are held back. */
  set holdsHostFunctions(held: boolean) {
    this.#control.holdHosts(held ? 1 : 0)
  }

  /** Whether library loads are held back. */
  set holdsLoads(held: boolean) {
    this.#control.holdLoads(held ? 1 : 0)
  }

  /** The value of an attribute on every device, by attribute number. */
  setAttribute(attribute: number, value: number): void {
    this.#control.setAttribute(attribute, value)
  }

  /** What a graph call that is made to fail reports: its result code, and the driver's node with this index. */
  refuseGraph(result: number, nodeIndex = -1): void {
    this.#control.refuseGraph(result, nodeIndex)
  }

  /** How many calls would have blocked in the driver on a busy device. */
  get blocked(): number {
    return this.#control.blocked()
  }

  /** The number of host functions called, and of those on the thread that reset the stub. */
  get hostCalls(): { readonly all: number; readonly onMain: number } {
    return { all: this.#control.hostCalls(0), onMain: this.#control.hostCalls(1) }
  }

  get live(): DriverLive {
    return Object.fromEntries(liveKinds.map((kind, index) => [kind, this.#control.live(index)])) as DriverLive
  }

  /** The first misuse of the driver, if any. */
  get misuse(): string | undefined {
    return this.#control.misuses() === 0 ? undefined : this.#control.misuse()
  }

  /** Makes a foreign context current on this thread, and returns it. */
  pushForeign(): number {
    return Number(this.#control.pushForeign())
  }

  popForeign(): void {
    this.#control.popForeign()
  }

  /** The current context of this thread, 0 for none. */
  get current(): number {
    return Number(this.#control.current())
  }

  /** The depth of this thread's context stack. */
  get depth(): number {
    return this.#control.depth()
  }

  /** A foreign stream on a device's primary context, which must be retained; on another context for -1. */
  foreignStream(device: number, { flags = 0, priority = 0 } = {}): number {
    return Number(this.#control.foreignStream(device, flags, priority))
  }

  /** The handle of memory of another process: of an allocation of this size. */
  remoteMemory(byteLength: number): Uint8Array<ArrayBuffer> {
    const handle = new Uint8Array(64)
    this.#control.remoteMemory(handle, byteLength)
    return handle
  }

  /** An interprocess event of another process, with a pending record. */
  remoteEvent(): { readonly handle: Uint8Array; readonly finish: () => void } {
    const handle = new Uint8Array(64)
    const remote: number = this.#control.remoteEvent(handle)
    return { handle, finish: () => this.#control.remoteFinish(remote) }
  }
}

/** The stub of this process. */
export const openStub = (macros: ReadonlyArray<string> = []): StubDriver => new StubDriver(buildStub(macros))

const copies: Array<string> = []

afterAll(() => {
  for (const path of copies) rmSync(path, { force: true })
})

/** A separate stub with its own state. */
export const copyStub = (macros: ReadonlyArray<string> = []): StubDriver => {
  const built = buildStub(macros)
  const path = built.replace(/\.so$/, `-${process.pid}-${copies.length}.so`)
  copyFileSync(built, path)
  copies.push(path)
  return new StubDriver(path)
}

/** The native runtime on a stub. */
export const stubLayer = (
  stub: StubDriver,
  options: NativeRuntime.NativeOptions = {}
): Layer.Layer<CudaRuntime, CudaError> => NativeRuntime.layer({ libraryPath: stub.path, ...options })

/** Options for running a program on the stub. */
export interface StubOptions extends NativeRuntime.NativeOptions {
  /** Configures the stub after its reset. */
  readonly prepare?: ((stub: StubDriver) => void) | undefined
  /** Resources that may remain in the driver after the runtime's release, because their release call was made to fail. */
  readonly left?: Partial<DriverLive> | undefined
}

/** Runs a program on its own runtime, and asserts that the driver was not misused and holds nothing after the release. */
export const onStub = <A, E>(
  stub: StubDriver,
  program: Effect.Effect<A, E, CudaRuntime | Scope.Scope>,
  { left = {}, prepare, ...options }: StubOptions = {}
): Effect.Effect<A, E | CudaError> =>
  Effect.gen(function*() {
    stub.reset()
    prepare?.(stub)
    // A failing test ends here instead of waiting for the work it left.
    const letGo = Effect.onError(program, () => Effect.sync(() => stub.letGo()))
    const result = yield* letGo.pipe(Effect.scoped, Effect.provide(stubLayer(stub, options)))
    assertReleased(stub, left)
    yield* assertQuiet(stub)
    return result
  })

/** Asserts that the driver was used correctly, and holds only the named resources. */
export const assertReleased = (stub: StubDriver, left: Partial<DriverLive> = {}): void => {
  assert.isUndefined(stub.misuse)
  // The pools of a lost context stay, since the driver cannot say whether their memory is free.
  const { pools } = stub.fault === 0 ? nothingLive : stub.live
  assert.deepStrictEqual(stub.live, { ...nothingLive, pools, ...left })
  assert.strictEqual(stub.depth, 0, "contexts that were pushed and not popped")
  assert.strictEqual(stub.failuresLeft, 0, "failures that were asked for and never happened")
}

/** Asserts that the driver is no longer called. */
export const assertQuiet = (stub: StubDriver): Effect.Effect<void> =>
  Effect.gen(function*() {
    const before = stub.callCount
    yield* pause(3)
    assert.strictEqual(stub.callCount - before, 0, "calls of the driver after the runtime's release")
  })

/** Runs the event loop for some milliseconds, regardless of the Clock. */
export const pause = (milliseconds = 0): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    const timer = setTimeout(() => resume(Effect.void), milliseconds)
    return Effect.sync(() => clearTimeout(timer))
  })

/** Runs the event loop until a condition holds; dies if it does not within two seconds. */
export const until = (what: string, holds: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() => {
    const deadline = performance.now() + 2000
    const look: Effect.Effect<void> = Effect.suspend(() => {
      if (holds()) return Effect.void
      if (performance.now() > deadline) return Effect.die(new Error(`waited in vain: ${what}`))
      return Effect.andThen(pause(1), look)
    })
    return look
  })

/** Collects what an effect logs instead of printing it. */
export const logged = <A, E, R>(
  effect: Effect.Effect<A, E, R>
): Effect.Effect<{ readonly result: A; readonly lines: ReadonlyArray<string> }, E, R> =>
  Effect.suspend(() => {
    const lines: Array<string> = []
    const logger = Logger.make<unknown, void>(({ logLevel, message }) => {
      lines.push(`${logLevel} ${(Array.isArray(message) ? message : [message]).map(String).join(" ")}`)
    })
    return Effect.map(Effect.provide(effect, Logger.layer([logger])), (result) => ({ result, lines }))
  })
