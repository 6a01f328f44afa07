/**
 * Compiles with NVRTC: loads the library for the first program, chooses the architecture, limits how many compilations
 * run at once, and caches their results.
 */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Semaphore from "effect/Semaphore"
import { createHash } from "node:crypto"
import { environment } from "../../cuda/environment.ts"
import { nvrtcCompilation, nvrtcInvalidOption, nvrtcResult } from "../../cuda/nvrtc.ts"
import { load, makeStop } from "../../cuda/nvrtcLibrary.ts"
import type { NvrtcLibrary } from "../../cuda/nvrtcLibrary.ts"
import { CudaError } from "../../CudaError.ts"
import type { CudaErrorReason } from "../../CudaError.ts"
import type { CompiledProgram } from "../CudaRuntime.ts"
import { refuseDescribed } from "../shared/failures.ts"
import { architectureName, compileOperation } from "../shared/programs.ts"
import type { CompileTask, Goal } from "../shared/programs.ts"
import { parseLog } from "./diagnostics.ts"
import { runJob } from "./nvrtcProgram.ts"
import type { Job, Outcome, Output } from "./nvrtcProgram.ts"
import { ProgramCache } from "./ProgramCache.ts"
import { isSelfContained } from "./selfContained.ts"

/** The runtime's options for compiling, with defaults filled in. */
export interface CompilerPolicy {
  /** NVRTC's library. Default: searches the usual places. */
  readonly path: string | undefined
  /** Whether to cache programs that do not specify it in their own options. */
  readonly cache: boolean
  /** The folder of the cache; undefined disables the cache. */
  readonly folder: string | undefined
  readonly maxBytes: number
}

/** A running compilation and the number of fibers that wait for it. */
interface Flight {
  readonly fiber: Fiber.Fiber<CompiledProgram, CudaError>
  users: number
}

/**
 * A compilation occupies a thread of libuv's pool, which file access and DNS lookups need too. The runtimes of a JS
 * thread share this limit and leave half of the pool free. Worker threads each have their own limit but share the pool:
 * compiling on several of them may fill it, and file access then waits for the next compilation to end.
 */
const gate = Semaphore.makeUnsafe(Math.max(1, Math.floor((Number(environment["UV_THREADPOOL_SIZE"]) || 4) / 2)))

/** Change this when the same job would compile to something else. */
const keyFormat = 2

export class Compiler {
  readonly #policy: CompilerPolicy
  readonly #driverMajor: number
  readonly #cache: ProgramCache | undefined
  readonly #flights = new Map<string, Flight>()
  #loading: ReturnType<typeof load> | undefined

  constructor(policy: CompilerPolicy, driverVersion: number) {
    this.#policy = policy
    this.#driverMajor = Math.floor(driverVersion / 1000)
    this.#cache = policy.folder === undefined ? undefined : new ProgramCache(policy.folder, policy.maxBytes)
  }

  readonly compile = (task: CompileTask): Effect.Effect<CompiledProgram, CudaError> =>
    Effect.flatMap(this.#library(task), (library) => {
      const goal = chooseGoal(task.goal, library)
      if (goal === undefined) return refuseGoal(task, library)
      const architecture = architectureName(goal)
      const options = [`--gpu-architecture=${architecture}`, ...task.options]
      const { headers, name, nameExpressions, source } = task
      const job: Job = { source, name, target: goal.target, options, headers, nameExpressions }
      const made = (output: Output, fromCache: boolean): CompiledProgram => ({
        ...output,
        kind: goal.target,
        architecture,
        image: terminated(output.image, goal.target),
        fromCache
      })
      const key = keyOf(job, library)
      const cache = (task.cache ?? this.#policy.cache) && isSelfContained(job) ? this.#cache : undefined
      const compiled = Effect.map(this.#run(library, task, job), (output) => made(output, false))
      if (cache === undefined) return this.#share(key, compiled)
      const kept = Effect.tap(compiled, (output) => cache.write(key, output))
      return Effect.flatMap(
        cache.read(key),
        (output) => output === undefined ? this.#share(`${key} kept`, kept) : Effect.succeed(made(output, true))
      )
    })

  /** Loads the library once. After a failed search, the next program searches again. */
  #library(task: CompileTask): Effect.Effect<NvrtcLibrary, CudaError> {
    return Effect.flatMap(
      Effect.promise(() => this.#loading ??= load(this.#policy.path, this.#driverMajor)),
      (result) => {
        if (result._tag === "Loaded") return Effect.succeed(result.library)
        this.#loading = undefined
        return fail(task, { _tag: "CompilerNotFound", searched: result.searched })
      }
    )
  }

  /**
   * Shares one compilation among all concurrent requests for it, and stops it when the last of them is interrupted. Looks for a compilation
   * and joins it in one step, in which no other fiber runs.
   */
  #share(key: string, compiled: Effect.Effect<CompiledProgram, CudaError>): Effect.Effect<CompiledProgram, CudaError> {
    return Effect.uninterruptibleMask((restore) =>
      Effect.withFiber((fiber) => {
        const flight = this.#flights.get(key) ?? this.#begin(key, Effect.runForkWith(fiber.context)(compiled))
        flight.users++
        return Effect.onInterrupt(restore(Fiber.join(flight.fiber)), () =>
          Effect.sync(() => {
            if (--flight.users > 0) return
            this.#end(key, flight)
            flight.fiber.interruptUnsafe()
          }))
      })
    )
  }

  #begin(key: string, fiber: Flight["fiber"]): Flight {
    const flight: Flight = { fiber, users: 0 }
    this.#flights.set(key, flight)
    fiber.addObserver(() => this.#end(key, flight))
    return flight
  }

  #end(key: string, flight: Flight): void {
    if (this.#flights.get(key) === flight) this.#flights.delete(key)
  }

  #run(library: NvrtcLibrary, task: CompileTask, job: Job): Effect.Effect<Output, CudaError> {
    return Effect.flatMap(gate.withPermit(compileNow(library, job)), (outcome) => {
      if (outcome._tag === "Failed") return fail(task, reasonOf(outcome, job), outcome.call)
      if (!isEmpty(outcome.output.image)) return Effect.succeed(outcome.output)
      const log = outcome.output.log +
        `With these options, NVRTC generates no ${job.target === "cubin" ? "CUBIN" : "PTX"}.`
      return fail(task, { _tag: "InvalidCompileOption", options: job.options, log })
    })
  }
}

/** If an option suppresses PTX, NVRTC returns an empty string: a single NUL character. */
const isEmpty = (image: Uint8Array): boolean => image.byteLength === 0 || image[0] === 0

/**
 * Interruption ends this only after the compiler has stopped, so that the permit covers the compiler's whole run. Only
 * the flight waits for that, not the fibers that asked for the program.
 */
const compileNow = (library: NvrtcLibrary, job: Job): Effect.Effect<Outcome> =>
  Effect.callback((resume) => {
    const stop = makeStop()
    const ended = runJob(library, job, stop).then(
      (outcome) => resume(Effect.succeed(outcome)),
      (error) => resume(Effect.die(error))
    )
    return Effect.promise(() => {
      stop.request()
      return ended
    })
  })

/** The closest goal that NVRTC supports: PTX for an older architecture runs on a newer device too. */
const chooseGoal = (goal: Goal, { architectures }: NvrtcLibrary): Goal | undefined => {
  if (architectures.includes(goal.architecture)) return goal
  const { architecture, given, target } = goal
  const older = architectures.filter((known) => known < architecture)
  if (given.architecture || (given.target && target === "cubin") || older.length === 0) return undefined
  return { ...goal, target: "ptx", architecture: Math.max(...older) }
}

const refuseGoal = ({ deviceIndex, goal }: CompileTask, { architectures, version }: NvrtcLibrary) => {
  const name = architectureName(goal)
  return refuseDescribed(
    compileOperation,
    "architecture",
    goal.given.architecture ? JSON.stringify(name) : `that of device ${deviceIndex} (${name})`,
    `one that NVRTC ${version.major}.${version.minor} supports: ${architectures.join(", ")}`
  )
}

const fail = (task: CompileTask, reason: CudaErrorReason, call?: string): Effect.Effect<never, CudaError> =>
  Effect.suspend(() =>
    Effect.fail(
      new CudaError({ operation: compileOperation, reason, call, subject: task.name, deviceIndex: task.deviceIndex })
    )
  )

const reasonOf = (
  { code, log }: Extract<Outcome, { readonly _tag: "Failed" }>,
  { headers, name, options, source }: Job
): CudaErrorReason => {
  if (code === nvrtcInvalidOption) return { _tag: "InvalidCompileOption", options, log }
  if (code !== nvrtcCompilation) return { _tag: "CompilerFailed", ...nvrtcResult(code), log }
  const diagnostics = parseLog(log, new Map([...headers, [name, source]]))
  return { _tag: "CompilationFailed", program: name, diagnostics, log }
}

/** The driver expects PTX to end with a NUL character. */
const terminated = (image: Uint8Array<ArrayBuffer>, target: Goal["target"]): Uint8Array<ArrayBuffer> => {
  if (target === "cubin" || image.at(-1) === 0) return image
  const longer = new Uint8Array(image.byteLength + 1)
  longer.set(image)
  return longer
}

/**
 * A hash of everything that determines the output. Each part is preceded by its length, so that no two jobs give the
 * hash the same text. UTF-16 keeps texts apart that differ in lone surrogates.
 */
const keyOf = (job: Job, { identity, version }: NvrtcLibrary): string => {
  const headers = job.headers.toSorted(([one], [other]) => one < other ? -1 : 1)
  const { name, nameExpressions, options, source, target } = job
  const lists = [
    [String(keyFormat), String(version.major), String(version.minor), identity, target, name, source],
    options,
    headers.flat(),
    nameExpressions
  ]
  const hash = createHash("sha256")
  for (const list of lists) {
    hash.update(`${list.length};`, "utf16le")
    for (const part of list) hash.update(`${part.length}:`, "utf16le").update(part, "utf16le")
  }
  return hash.digest("hex")
}
