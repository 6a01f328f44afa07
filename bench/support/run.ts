/**
 * Starts and ends benchmarks: on the first GPU, on the stub driver, or without a driver. Prints the facts and the
 * duration, writes the figures, and always releases the benchmark's resources.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { CudaError } from "../../src/CudaError.ts"
import type { CudaRuntime } from "../../src/layers/CudaRuntime.ts"
import * as NativeRuntime from "../../src/layers/NativeRuntime.ts"
import { openDriver } from "./driver.ts"
import type { Driver } from "./driver.ts"
import { facts, note, noteGpu } from "./facts.ts"
import { leaveResults } from "./results.ts"
import type { Figure } from "./results.ts"
import { buildStub } from "./stub.ts"

/** A driver to measure with, and the native runtime on it. */
export interface Ground {
  readonly driver: Driver
  readonly isGpu: boolean
  readonly makeRuntime: (
    options?: NativeRuntime.NativeOptions
  ) => Effect.Effect<CudaRuntime["Service"], CudaError, Scope.Scope>
}

type Body<A> = (ground: A) => Effect.Effect<ReadonlyArray<Figure>, CudaError, Scope.Scope>

/** Runs a benchmark on the first GPU. Fails with a message if there is none. */
export const runOnGpu = (name: string, body: Body<Ground>): Promise<void> => start(name, openGpu, body)

/** Runs a benchmark on the first GPU, or on the stub driver if the process has the argument "stub". */
export const runOnDriver = (name: string, body: Body<Ground>): Promise<void> =>
  start(name, process.argv[2] === "stub" ? () => openStub() : openGpu, body)

/** Runs a benchmark that needs no driver. */
export const runAnywhere = (name: string, body: Body<void>): Promise<void> => start(name, () => undefined, body)

/** Runs a benchmark on the stub driver, with several devices. */
export const runOnStub = (name: string, devices: number, body: Body<Ground>): Promise<void> =>
  start(name, () => openStub(devices), body)

const openGpu = (): Ground | string => {
  const driver = openDriver()
  if (typeof driver === "string") return `no GPU (${driver})`
  noteGpu(driver)
  return { driver, isGpu: true, makeRuntime: NativeRuntime.make }
}

const openStub = (devices?: number): Ground | string => {
  const stub = buildStub(devices)
  if ("problem" in stub) return stub.problem
  const driver = openDriver(stub.path)
  if (typeof driver === "string") return driver
  note("Driver", "a stub whose calls return immediately")
  return {
    driver,
    isGpu: false,
    makeRuntime: (options) => NativeRuntime.make({ libraryPath: stub.path, ...options })
  }
}

const start = async <A>(name: string, open: () => A | string, body: Body<A>): Promise<void> => {
  const ground = open()
  if (typeof ground === "string") return giveUp(name, ground)
  const started = performance.now()
  console.log(`== ${name}\n${describe()}`)
  try {
    const figures = await Effect.runPromise(Effect.scoped(Effect.suspend(() => body(ground))))
    leaveResults({ facts: facts(), figures })
    console.log(`\n${name} took ${((performance.now() - started) / 1e3).toFixed(1)} s`)
  } catch (error) {
    console.error(`${name} failed:`, error)
    process.exitCode = 1
  }
}

const giveUp = (name: string, reason: string): void => {
  console.error(`${name}: not measured: ${reason}`)
  leaveResults({ facts: {}, figures: [], notRun: reason })
  process.exitCode = 1
}

const describe = (): string => Object.entries(facts()).map(([name, value]) => `${name}: ${value}`).join("; ")
