/**
 * Starts the native runtime: resolves its options, finds and loads the driver library, reads the devices, and builds
 * the backend. This module is loaded when the runtime is first built, so that importing the library stays cheap.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { totalmem } from "node:os"
import { resolve } from "node:path"
import { inTurn } from "../../cuda/asyncCalls.ts"
import { environment } from "../../cuda/environment.ts"
import { deviceAttributes, minimumDriverVersion } from "../../cuda/flags.ts"
import type { DeviceAttribute } from "../../cuda/flags.ts"
import type { CUdevice } from "../../cuda/handles.ts"
import { prepareStack } from "../../cuda/koffi.ts"
import { candidates, load } from "../../cuda/library.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { statuses, success } from "../../cuda/status.ts"
import { annotations, CudaError, invalidArgument, reasonFromStatus, unknownStatus } from "../../CudaError.ts"
import type { CudaErrorReason } from "../../CudaError.ts"
import type { CudaRuntimeService, DeviceProperties } from "../CudaRuntime.ts"
import type { NativeOptions } from "../NativeRuntime.ts"
import { readPath, readVariable } from "../shared/configuration.ts"
import * as Runtime from "../shared/Runtime.ts"
import { NativeBackend } from "./Backend.ts"
import type { NativePolicy } from "./Backend.ts"
import { Compiler } from "./Compiler.ts"
import type { CompilerPolicy } from "./Compiler.ts"
import { describeStatus, Out } from "./Device.ts"
import type { Warn } from "./Device.ts"
import { cacheFolder } from "./ProgramCache.ts"
import { wakerOfThread } from "./Waker.ts"

/** Creates the runtime in a scope. */
export const start = (options: NativeOptions): Effect.Effect<CudaRuntimeService, CudaError, Scope.Scope> =>
  Effect.gen(function*() {
    const policy = yield* resolvePolicy(options)
    const compilerPolicy = yield* resolveCompiler(options)
    yield* Effect.promise(prepareStack)
    const library = yield* loadLibrary(options.libraryPath)
    yield* initialize(library)
    const driverVersion = yield* readVersion(library)
    const devices = yield* readDevices(library)
    const waker = policy.wait.wakeUp ? yield* openWaker : undefined
    const warn = yield* makeWarn(library)
    const compiler = new Compiler(compilerPolicy, driverVersion)
    return yield* Runtime.make(
      new NativeBackend({ library, driverVersion, devices, policy, waker, programs: compiler, warn })
    )
  })

const operation = "NativeRuntime.make"

const fail = (reason: CudaErrorReason, call?: string, subject?: string): Effect.Effect<never, CudaError> =>
  Effect.fail(new CudaError({ operation, reason, call, subject }))

const check = (
  library: DriverLibrary,
  call: string,
  status: number,
  subject?: string
): Effect.Effect<void, CudaError> => {
  if (status === success) return Effect.void
  const known = reasonFromStatus(status)
  if (known._tag !== "UnknownStatus") return fail(known, call, subject)
  const words = describeStatus(library, status)
  return fail(unknownStatus(status, words?.name, words?.description), call, subject)
}

/** Deno refuses it without a permission. Then pinned memory has no limit but the system's. */
const memoryOfMachine = (): number => {
  try {
    return totalmem()
  } catch {
    return Number.MAX_SAFE_INTEGER
  }
}

const resolvePolicy = (options: NativeOptions): Effect.Effect<NativePolicy, CudaError> => {
  const policy = {
    wait: {
      pollFor: toMillis(options.wait?.pollFor ?? Duration.micros(200n)),
      wakeUp: options.wait?.wakeUp ?? true,
      safetyInterval: 100,
      timerInterval: 1
    },
    pinned: {
      maxBytes: options.pinned?.maxBytes ?? memoryOfMachine(),
      keepBytes: options.pinned?.keepBytes ?? 1024 ** 3
    },
    connectsAll: options.peers === "all"
  }
  const { peers = "none" } = options
  if (peers !== "none" && peers !== "all") {
    return Effect.fail(invalidArgument(operation, "peers", peers, `"none" or "all"`))
  }
  for (const [argument, value] of Object.entries({ pollFor: policy.wait.pollFor, ...policy.pinned })) {
    if (value >= 0) continue
    return Effect.fail(invalidArgument(operation, argument, value, "a number of at least 0"))
  }
  return Effect.succeed(policy)
}

/** NaN for an invalid duration. Keeps negative numbers and NaN, which `Duration` would turn into 0. */
const toMillis = (input: Duration.Input): number => {
  if (typeof input === "number") return input
  try {
    return Duration.toMillis(input)
  } catch {
    return Number.NaN
  }
}

const variable = (name: string) => readVariable(operation, name)

const resolveCompiler = Effect.fnUntraced(function*({ nvrtcPath, programCache = {} }: NativeOptions) {
  const { enabled = true, maxBytes = 512 * 1024 ** 2 } = programCache
  if (!(maxBytes >= 0)) {
    return yield* invalidArgument(operation, "maxBytes", maxBytes, "a number of at least 0")
  }
  const { folder } = programCache
  if (folder !== undefined && (typeof folder !== "string" || folder === "" || folder.includes("\0"))) {
    return yield* invalidArgument(operation, "folder", folder, "the path of a folder")
  }
  const path = yield* readPath(operation, nvrtcPath, "EFFECT_CUDA_NVRTC")
  const configured = folder ?? ((yield* variable("EFFECT_CUDA_CACHE")) || cacheFolder(environment))
  const policy: CompilerPolicy = {
    path,
    cache: enabled,
    folder: (folder === undefined && configured === "off") || configured === undefined
      ? undefined
      : resolve(configured),
    maxBytes
  }
  return policy
})

const loadLibrary = Effect.fnUntraced(function*(libraryPath: string | undefined) {
  const named = yield* readPath(operation, libraryPath, "EFFECT_CUDA_LIBRARY")
  const paths = named === undefined ? candidates(process.platform, environment) : [named]
  const result = yield* Effect.promise(() => load(paths))
  switch (result._tag) {
    case "Loaded":
      return result.library
    case "NotFound":
      return yield* fail({ _tag: "LibraryNotFound", isNamed: named !== undefined, searched: result.searched })
    case "KoffiNotLoaded":
      return yield* fail(result)
    case "FunctionMissing": {
      const found = result.driverVersion
      if (found !== undefined && found < minimumDriverVersion) return yield* tooOld(found)
      return yield* fail({ _tag: "FunctionMissing", functionName: result.functionName })
    }
  }
})

/**
 * Reports failed releases that no program waits for: logs them where the layer was built, unless the driver has already
 * shut down. Only the first failure after a context is lost is a warning.
 */
const makeWarn = (library: DriverLibrary): Effect.Effect<Warn> =>
  Effect.map(Effect.context<never>(), (context) => {
    const run = Effect.runForkWith(context)
    let saidLost = false
    return (call, status, handle) => {
      if (status === success || status === statuses.Deinitialized.code) return
      const log = (error: CudaError) => {
        const isSaid = saidLost && error.isSticky
        saidLost ||= error.isSticky
        const said = isSaid ? Effect.logDebug(error.message) : Effect.logWarning(error.message)
        return Effect.annotateLogs(said, annotations(error))
      }
      run(Effect.flatMap(Effect.flip(check(library, call, status, `handle 0x${handle.toString(16)}`)), log))
    }
  })

/** Opens the waker. Logs a warning, once per thread, if there is none. */
const openWaker = Effect.gen(function*() {
  const waker = yield* Effect.promise(wakerOfThread)
  if (waker === undefined && !saidNoWaker) {
    saidNoWaker = true
    yield* Effect.logWarning("The GPU cannot wake the event loop; waits poll once per millisecond instead")
  }
  return waker
})

let saidNoWaker = false

const tooOld = (found: number) => fail({ _tag: "DriverTooOld", found, required: minimumDriverVersion })

const initialize = (library: DriverLibrary): Effect.Effect<void, CudaError> =>
  Effect.callback((resume) => {
    inTurn(
      (onEnd) => library.calls.cuInit.async(0, onEnd),
      (_, status) => resume(check(library, "cuInit", status))
    )
  })

const readVersion = Effect.fnUntraced(function*(library: DriverLibrary) {
  const version = new Int32Array(1)
  yield* check(library, "cuDriverGetVersion", library.calls.cuDriverGetVersion(version))
  const found = version[0]!
  return found < minimumDriverVersion ? yield* tooOld(found) : found
})

const readDevices = Effect.fnUntraced(function*(library: DriverLibrary) {
  const count = new Int32Array(1)
  yield* check(library, "cuDeviceGetCount", library.calls.cuDeviceGetCount(count))
  if (count[0] === 0) return yield* fail(reasonFromStatus(100), "cuDeviceGetCount")
  return yield* Effect.forEach(
    Array.from({ length: count[0]! }, (_, ordinal) => ordinal),
    (ordinal) => readDevice(library, ordinal)
  )
})

const readDevice = Effect.fnUntraced(function*(library: DriverLibrary, ordinal: number) {
  const { calls } = library
  const handles = new Int32Array(1)
  yield* check(library, "cuDeviceGet", calls.cuDeviceGet(handles, ordinal))
  const handle = handles[0]! as CUdevice
  const name = new Uint8Array(256)
  yield* check(library, "cuDeviceGetName", calls.cuDeviceGetName(name, name.byteLength, handle))
  const uuid = new Uint8Array(16)
  yield* check(library, "cuDeviceGetUuid", calls.cuDeviceGetUuid_v2(uuid, handle))
  const pciBusId = new Uint8Array(64)
  yield* check(library, "cuDeviceGetPCIBusId", calls.cuDeviceGetPCIBusId(pciBusId, pciBusId.byteLength, handle))
  const memory = new Out()
  yield* check(library, "cuDeviceTotalMem", calls.cuDeviceTotalMem_v2(memory.words, handle))
  const attribute = (key: DeviceAttribute) => {
    const value = new Int32Array(1)
    const status = calls.cuDeviceGetAttribute(value, deviceAttributes[key], handle)
    return Effect.as(check(library, "cuDeviceGetAttribute", status), value[0]!)
  }
  const properties: DeviceProperties = {
    index: ordinal,
    name: readText(name),
    uuid: formatUuid(uuid),
    computeCapability: {
      major: yield* attribute("computeCapabilityMajor"),
      minor: yield* attribute("computeCapabilityMinor")
    },
    totalMemory: memory.value,
    pciBusId: readText(pciBusId)
  }
  return { handle, properties }
})

const readText = (bytes: Uint8Array): string => new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)))

const formatUuid = (bytes: Uint8Array): string => {
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")
  return `GPU-${[[0, 8], [8, 12], [12, 16], [16, 20], [20, 32]].map(([from, to]) => hex.slice(from, to)).join("-")}`
}
