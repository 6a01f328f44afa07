/**
 * Kernels on the driver.
 */
import { kernelAttributes } from "../../cuda/flags.ts"
import type { KernelAttribute } from "../../cuda/flags.ts"
import type { CUkernel, CUstream, HostPointer } from "../../cuda/handles.ts"
import { nullHandle, offsetBy } from "../../cuda/handles.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { BlockSuggestion } from "../CudaRuntime.ts"
import type { Arguments } from "../shared/arguments.ts"
import type { KernelBackend } from "../shared/kernels.ts"
import type { LaunchShape } from "../shared/launchShape.ts"
import { KernelCode } from "../shared/moduleResources.ts"
import type { KernelResource, ModuleResource, ParameterInfo } from "../shared/moduleResources.ts"
import type { PartitionResource, StreamResource } from "../shared/resources.ts"
import { Out } from "./Device.ts"
import type { NativeDevices } from "./devices.ts"
import type { Driver } from "./Driver.ts"
import { LaunchBlock } from "./LaunchBlock.ts"
import { nativeStream } from "./streams.ts"

export class NativeKernels implements KernelBackend {
  code: KernelCode | undefined
  value = 0
  blockSuggestion: BlockSuggestion = { block: 0, minGrid: 0 }
  readonly #driver: Driver
  readonly #devices: NativeDevices
  readonly #block: LaunchBlock
  readonly #out = new Out<CUkernel>()
  readonly #integer = new Int32Array(1)
  readonly #grid = new Int32Array(1)

  constructor(driver: Driver, devices: NativeDevices) {
    this.#driver = driver
    this.#devices = devices
    this.#block = new LaunchBlock(driver.library)
  }

  find(module: ModuleResource, name: string): number {
    const status = this.#driver.calls.cuLibraryGetKernel(this.#out.words, module.handle, name)
    if (status !== success) return this.#driver.answer("cuLibraryGetKernel", status)
    this.code = new KernelCode(module, this.#out.value, name)
    return success
  }

  load(code: KernelCode, deviceIndex: number): number {
    return this.#driver.inContextOf(deviceIndex, "", () => {
      const status = this.#driver.calls.cuKernelGetFunction(this.#out.words, code.handle)
      if (status !== success) return this.#driver.answer("cuKernelGetFunction", status)
      return code.parameters === undefined ? this.#readParameters(code) : success
    })
  }

  /** Reads the parameters of a kernel one by one, until there are no more. Older drivers do not report them. */
  #readParameters(code: KernelCode): number {
    const { cuKernelGetParamInfo } = this.#driver.calls
    if (cuKernelGetParamInfo === undefined) return success
    const parameters: Array<ParameterInfo> = []
    const [offset, size] = [new Out(), new Out()]
    for (;;) {
      const status = cuKernelGetParamInfo(code.handle, parameters.length, offset.words, size.words)
      if (status === statuses.InvalidValue.code) break
      if (status !== success) return this.#driver.answer("cuKernelGetParamInfo", status)
      parameters.push({ offset: offset.value, size: size.value })
    }
    code.parameters = parameters
    return success
  }

  attribute(code: KernelCode, attribute: KernelAttribute, deviceIndex: number): number {
    const status = this.#driver.calls.cuKernelGetAttribute(
      this.#integer,
      kernelAttributes[attribute],
      code.handle,
      this.#devices.handleOf(deviceIndex)
    )
    this.value = this.#integer[0]!
    return this.#driver.answer("cuKernelGetAttribute", status)
  }

  setAttribute(code: KernelCode, attribute: KernelAttribute, value: number, deviceIndex: number): number {
    const { calls } = this.#driver
    const handle = this.#devices.handleOf(deviceIndex)
    const status = calls.cuKernelSetAttribute(kernelAttributes[attribute], value, code.handle, handle)
    return this.#driver.answer("cuKernelSetAttribute", status)
  }

  activeBlocks({ handle }: KernelCode, threads: number, sharedBytes: number, deviceIndex: number): number {
    const { calls } = this.#driver
    return this.#read(
      deviceIndex,
      "cuOccupancyMaxActiveBlocksPerMultiprocessor",
      (out) => calls.cuOccupancyMaxActiveBlocksPerMultiprocessor(out, handle, threads, sharedBytes)
    )
  }

  bestBlock(
    { handle }: KernelCode,
    sharedBytes: number,
    maxThreads: number,
    deviceIndex: number,
    partition: PartitionResource | undefined
  ): number {
    const { calls } = this.#driver
    const noSizeFunction = nullHandle<HostPointer>()
    const status = this.#read(
      deviceIndex,
      "cuOccupancyMaxPotentialBlockSize",
      (out) => calls.cuOccupancyMaxPotentialBlockSize(this.#grid, out, handle, noSizeFunction, sharedBytes, maxThreads),
      partition
    )
    this.blockSuggestion = { block: this.value, minGrid: this.#grid[0]! }
    return status
  }

  activeClusters(
    { handle }: KernelCode,
    shape: LaunchShape,
    deviceIndex: number,
    partition: PartitionResource | undefined
  ): number {
    const { calls } = this.#driver
    this.#block.write(shape, nullHandle())
    return this.#read(
      deviceIndex,
      "cuOccupancyMaxActiveClusters",
      (out) => calls.cuOccupancyMaxActiveClusters(out, handle, this.#block.address),
      partition
    )
  }

  maxCluster({ handle }: KernelCode, shape: LaunchShape, deviceIndex: number): number {
    const { calls } = this.#driver
    this.#block.write(shape, nullHandle())
    return this.#read(
      deviceIndex,
      "cuOccupancyMaxPotentialClusterSize",
      (out) => calls.cuOccupancyMaxPotentialClusterSize(out, handle, this.#block.address)
    )
  }

  /** Reads a number, with the context of the device or of a partition current. */
  #read(
    deviceIndex: number,
    name: string,
    ask: (out: Int32Array) => number,
    partition?: PartitionResource
  ): number {
    const status = this.#driver.inContextOf(deviceIndex, name, () => ask(this.#integer), partition?.handle)
    this.value = this.#integer[0]!
    return status
  }

  /** Writes the address of each argument for the driver. The addresses are valid as long as the buffer lives. */
  argumentTable({ buffer, offsets, tableOffset }: Arguments): HostPointer {
    if (offsets.length === 0) return nullHandle()
    const start = this.#driver.library.addressOf(buffer)
    new BigUint64Array(buffer, tableOffset).set(offsets.map((offset) => BigInt(start + offset)))
    return offsetBy(start, tableOffset)
  }

  launch({ handle, table }: KernelResource, shape: LaunchShape, resource: StreamResource): number {
    const stream = nativeStream(resource)
    if (!stream.needsContext) return this.#launch(handle, table, shape, stream.handle)
    return this.#driver.inContextOf(stream.deviceIndex, "", () => this.#launch(handle, table, shape, stream.handle))
  }

  #launch(kernel: CUkernel, table: HostPointer, shape: LaunchShape, stream: CUstream): number {
    this.#block.write(shape, stream)
    const { calls } = this.#driver
    return this.#driver.answer("cuLaunchKernelEx", calls.cuLaunchKernelEx(this.#block.address, kernel, table, noExtra))
  }
}

const noExtra = nullHandle<HostPointer>()
