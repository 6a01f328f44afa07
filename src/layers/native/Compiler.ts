/**
 * Compiling with NVRTC: the library, loaded by the first program that is compiled; what can be compiled for; how many
 * compilations run at once; and the programs that were compiled before.
 */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Semaphore from "effect/Semaphore"
import { createHash } from "node:crypto"
import { isFileOption, nvrtcCompilation, nvrtcInvalidOption, nvrtcResult } from "../../cuda/nvrtc.ts"
import { load, makeStop } from "../../cuda/nvrtcLibrary.ts"
import type { NvrtcLibrary } from "../../cuda/nvrtcLibrary.ts"
import { CudaError } from "../../CudaError.ts"
import type { CudaErrorReason } from "../../CudaError.ts"
import type { CompiledProgram } from "../CudaRuntime.ts"
import { refuseArgument } from "../shared/failures.ts"
import { architectureName, compileOperation } from "../shared/programs.ts"
import type { CompileTask, Goal } from "../shared/programs.ts"
import { parseLog } from "./diagnostics.ts"
import { runJob } from "./nvrtcProgram.ts"
import type { Job, Outcome, Output } from "./nvrtcProgram.ts"
import { ProgramCache } from "./ProgramCache.ts"

/** What the runtime was told of compiling, complete. */
export interface CompilerPolicy {
  /** NVRTC's library; the usual places without it. */
  readonly path: string | undefined
  /** Whether programs are kept on disk where a program does not say. */
  readonly cache: boolean
  /** Where; nowhere without it. */
  readonly folder: string | undefined
  readonly maxBytes: number
}

/** A compilation that goes on, and how many wait for it. */
interface Flight {
  readonly fiber: Fiber.Fiber<CompiledProgram, CudaError>
  users: number
}

/**
 * A compilation holds a thread of the pool, which files and names of the network need too: all runtimes together leave
 * half of it alone.
 */
const gate = Semaphore.makeUnsafe(Math.max(1, Math.floor((Number(process.env["UV_THREADPOOL_SIZE"]) || 4) / 2)))

/** Changes when a compilation of the same job means something else. */
const keyFormat = 1

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

  /** Loaded once; a search that found nothing is done again for the next program. */
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
   * One compilation for all who want the same at the same time. It is given up when the last of them is interrupted.
   */
  #share(key: string, compiled: Effect.Effect<CompiledProgram, CudaError>): Effect.Effect<CompiledProgram, CudaError> {
    return Effect.uninterruptibleMask((restore) =>
      Effect.gen({ self: this }, function*() {
        const flight = this.#flights.get(key) ?? (yield* this.#begin(key, compiled))
        flight.users++
        return yield* Effect.onInterrupt(restore(Fiber.join(flight.fiber)), () =>
          Effect.sync(() => {
            if (--flight.users > 0) return
            this.#end(key, flight)
            flight.fiber.interruptUnsafe()
          }))
      })
    )
  }

  #begin(key: string, compiled: Effect.Effect<CompiledProgram, CudaError>): Effect.Effect<Flight> {
    return Effect.map(Effect.forkDetach(compiled), (fiber) => {
      const flight: Flight = { fiber, users: 0 }
      this.#flights.set(key, flight)
      fiber.addObserver(() => this.#end(key, flight))
      return flight
    })
  }

  #end(key: string, flight: Flight): void {
    if (this.#flights.get(key) === flight) this.#flights.delete(key)
  }

  #run(library: NvrtcLibrary, task: CompileTask, job: Job): Effect.Effect<Output, CudaError> {
    return Effect.flatMap(gate.withPermit(compileNow(library, job)), (outcome) => {
      if (outcome._tag === "Failed") return fail(task, reasonOf(outcome, job), outcome.call)
      if (outcome.output.image.byteLength > 0) return Effect.succeed(outcome.output)
      const log = outcome.output.log + `With these options NVRTC makes no ${job.target === "cubin" ? "CUBIN" : "PTX"}.`
      return fail(task, { _tag: "InvalidCompileOption", options: job.options, log })
    })
  }
}

/**
 * Interrupted, this ends when the compiler has stopped: the permit is held for as long as the compiler works. Nobody
 * waits for that but the flight itself.
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

/** What can be compiled for of what is wanted: PTX of an older architecture runs on a newer device too. */
const chooseGoal = (goal: Goal, { architectures }: NvrtcLibrary): Goal | undefined => {
  if (architectures.includes(goal.architecture)) return goal
  const { architecture, given, target } = goal
  const older = architectures.filter((known) => known < architecture)
  if (given.architecture || (given.target && target === "cubin") || older.length === 0) return undefined
  return { ...goal, target: "ptx", architecture: Math.max(...older) }
}

const refuseGoal = ({ device, goal }: CompileTask, { architectures, version }: NvrtcLibrary) =>
  refuseArgument(
    compileOperation,
    "architecture",
    goal.given.architecture ? architectureName(goal) : `that of device ${device} (${architectureName(goal)})`,
    `one that NVRTC ${version.major}.${version.minor} compiles for: ${architectures.join(", ")}`
  )

const fail = (task: CompileTask, reason: CudaErrorReason, call?: string): Effect.Effect<never, CudaError> =>
  Effect.suspend(() =>
    Effect.fail(
      new CudaError({ operation: compileOperation, reason, call, subject: task.name, device: task.device })
    )
  )

const reasonOf = (
  { code, log }: Extract<Outcome, { readonly _tag: "Failed" }>,
  { headers, name, options, source }: Job
): CudaErrorReason => {
  if (code === nvrtcInvalidOption) return { _tag: "InvalidCompileOption", options, log }
  if (code !== nvrtcCompilation) return { _tag: "CompilerFailed", ...nvrtcResult(code), log }
  const diagnostics = parseLog(log, { ...Object.fromEntries(headers), [name]: source })
  return { _tag: "CompilationFailed", program: name, diagnostics, log }
}

/** PTX is text, which the driver takes with a NUL character at its end. */
const terminated = (image: Uint8Array<ArrayBuffer>, target: Goal["target"]): Uint8Array<ArrayBuffer> => {
  if (target === "cubin" || image.at(-1) === 0) return image
  const longer = new Uint8Array(image.byteLength + 1)
  longer.set(image)
  return longer
}

const keyOf = (job: Job, { identity, version }: NvrtcLibrary): string => {
  const headers = job.headers.toSorted(([one], [other]) => one < other ? -1 : 1)
  const { name, nameExpressions, options, source, target } = job
  const parts = [keyFormat, version, identity, target, name, source, options, headers, nameExpressions]
  return createHash("sha256").update(JSON.stringify(parts)).digest("hex")
}

/** Spaces and comments within a line. */
const gap = String.raw`(?:[^\S\n]|/\*.*?\*/)*`

/** `#include`, `#embed` and the like, however they are spelled, and the rest of the line. */
const includes = new RegExp(
  String.raw`(?:(?:^|\n|\*/)${gap}(?:#|%:)${gap}(?:include|import|embed)|__has_(?:include|embed))(?:_next)?\b(.*)`,
  "g"
)

const isSelfContained = ({ headers, options, source }: Job): boolean => {
  if (options.some(isFileOption)) return false
  const known = new Set(headers.map(([name]) => name))
  return [source, ...headers.map(([, content]) => content)].every((text) =>
    [...text.matchAll(includes)].every(([, rest = ""]) => {
      const [, quoted, bracketed] = /^\s*\(?\s*(?:"([^"]*)"|<([^>]*)>)/.exec(rest) ?? []
      return known.has(quoted ?? bracketed ?? "")
    })
  )
}
