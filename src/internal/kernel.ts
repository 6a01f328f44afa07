/**
 * What modules and kernels are made of. Their types are those of `CudaKernel.ts`.
 */
import type { ParameterKind } from "../cuda/parameters.ts"
import type { CudaKernel, CudaModule } from "../CudaKernel.ts"
import type { CudaProgram } from "../CudaProgram.ts"
import type { CudaRuntimeService, KernelRef, ModuleRef } from "../layers/CudaRuntime.ts"
import { Handle } from "./handles.ts"

export const ModuleTypeId = "~effect-cuda/CudaKernel/Module"
export const KernelTypeId = "~effect-cuda/CudaKernel"

export class ModuleImpl extends Handle implements CudaModule {
  readonly [ModuleTypeId] = ModuleTypeId
  readonly runtime: CudaRuntimeService
  readonly ref: ModuleRef
  readonly program: CudaProgram
  constructor(runtime: CudaRuntimeService, ref: ModuleRef, program: CudaProgram) {
    super()
    this.runtime = runtime
    this.ref = ref
    this.program = program
  }
  get handle(): number {
    return this.ref.handle
  }
  toJSON() {
    const { handle, program } = this
    return { _id: "CudaModule", program: program.name, handle, state: this.ref.state }
  }
}

export class KernelImpl<Parameters extends ReadonlyArray<ParameterKind>> extends Handle
  implements CudaKernel<Parameters>
{
  readonly [KernelTypeId] = KernelTypeId
  readonly runtime: CudaRuntimeService
  readonly ref: KernelRef
  readonly module: CudaModule
  readonly name: string
  readonly parameters: Parameters
  constructor(module: CudaModule, ref: KernelRef, name: string, parameters: Parameters) {
    super()
    this.runtime = module.runtime
    this.ref = ref
    this.module = module
    this.name = name
    this.parameters = parameters
  }
  get handle(): number {
    return this.ref.handle
  }
  toJSON() {
    const { handle, name, parameters } = this
    return { _id: "CudaKernel", name, parameters: parameters.map(({ kind }) => kind), handle }
  }
}
