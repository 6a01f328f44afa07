/**
 * The driver, its devices, how they reach each other, and a test of each.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { candidates, load } from "../../cuda/library.ts"
import * as CudaDevice from "../../CudaDevice.ts"
import { formatBytes, formatVersion } from "../../CudaError.ts"
import type { CudaError } from "../../CudaError.ts"
import { CudaRuntime } from "../../layers/CudaRuntime.ts"
import type { CudaRuntimeService } from "../../layers/CudaRuntime.ts"
import * as NativeRuntime from "../../layers/NativeRuntime.ts"
import { finding } from "./report.ts"
import type { Finding } from "./report.ts"
import { testDevice } from "./selfTest.ts"

/** The CUDA version of the driver, if there is a usable one, and what was found. */
export interface Examined {
  readonly cudaVersion: number | undefined
  readonly findings: ReadonlyArray<Finding>
}

/** Examines the devices of a runtime, by default those of this machine. */
export const examineDevices = (
  runtime: Effect.Effect<CudaRuntimeService, CudaError, Scope.Scope> = NativeRuntime.make()
): Effect.Effect<Examined> =>
  Effect.matchEffect(runtime, {
    onFailure: (error) => Effect.succeed({ cudaVersion: undefined, findings: [failed("driver", "CUDA", error)] }),
    onSuccess: (service) => Effect.provideService(examineRuntime(service), CudaRuntime, service)
  }).pipe(Effect.scoped)

const examineRuntime = Effect.fnUntraced(function*({ devices, driverVersion }: CudaRuntimeService) {
  const findings: Array<Finding> = [yield* driverFinding(driverVersion)]
  for (const device of devices) findings.push(yield* deviceFinding(device))
  for (const device of devices) findings.push(...yield* peerFindings(device, devices))
  for (const device of devices) findings.push(...yield* testDevice(device))
  return { cudaVersion: driverVersion, findings }
})

/** A failure's message says what to do. The places of a missing library are a list. */
const failed = (section: string, subject: string, { message, reason }: CudaError): Finding => {
  const details = { reason: reason._tag }
  if (reason._tag !== "LibraryNotFound") return finding(section, subject, "problem", message, { details })
  const tried = reason.searched.map(({ path, problem }) => `${path}: ${problem}`)
  return finding(section, subject, "problem", ["the driver library cannot be loaded:", ...tried].join("\n"), {
    details,
    advice: reason.isNamed
      ? "Correct the path in EFFECT_CUDA_LIBRARY, or unset it to search the usual places."
      : "Install the NVIDIA driver, or set EFFECT_CUDA_LIBRARY to the path of its library."
  })
}

const driverFinding = (version: number): Effect.Effect<Finding> =>
  Effect.promise(async () => {
    const named = process.env["EFFECT_CUDA_LIBRARY"]
    const loaded = await load(named ? [named] : candidates(process.platform, process.env))
    const path = loaded._tag === "Loaded" ? loaded.library.path : "unknown path"
    const text = `${formatVersion(version)}, ${path}`
    return finding("driver", "CUDA", "ok", text, { details: { version: formatVersion(version), path } })
  })

const deviceFinding = (device: CudaDevice.CudaDevice): Effect.Effect<Finding, never, CudaRuntime> =>
  Effect.match(CudaDevice.memoryInfo(device), {
    onFailure: (error) => failed("devices", titleOf(device), error),
    onSuccess: ({ free, total }) => {
      const { computeCapability: { major, minor }, name, pciBusId, uuid } = device
      const text = `${name}, compute capability ${major}.${minor}, ${formatBytes(free)} of ${formatBytes(total)} free`
      const details = { name, uuid, pciBusId, computeCapability: `${major}.${minor}`, free, total }
      return free >= leastFree
        ? finding("devices", titleOf(device), "ok", text, { details })
        : finding("devices", titleOf(device), "warning", text, {
          details,
          advice: "Other processes use nearly all memory of the device; nvidia-smi lists them."
        })
    }
  })

const leastFree = 512 * 1024 ** 2

const titleOf = ({ index }: CudaDevice.CudaDevice): string => `device ${index}`

const peerFindings = Effect.fnUntraced(function*(
  device: CudaDevice.CudaDevice,
  devices: ReadonlyArray<CudaDevice.CudaDevice>
) {
  const findings: Array<Finding> = []
  for (const peer of devices) {
    if (peer.index === device.index) continue
    const subject = `device ${device.index} → ${peer.index}`
    const can = yield* Effect.result(CudaDevice.canAccessPeer(device, peer))
    if (can._tag === "Failure") findings.push(failed("peer access", subject, can.failure))
    else {
      const text = can.success ? "direct" : "through host memory"
      findings.push(
        finding("peer access", subject, can.success ? "ok" : "note", text, { details: { direct: can.success } })
      )
    }
  }
  return findings
})
