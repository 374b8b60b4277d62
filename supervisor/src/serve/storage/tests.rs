//! What is imported, kept, found again and removed, with doubles for jailer and workers.

use super::*;
use crate::api::types::{ApiError, CreateRequest, OperationKind, OperationState, UpdateDone, UpdateRequest, VmState};
use crate::serve::registry::Entry as _;
use crate::serve::side::Received;
use crate::serve::side::shares::Task;
use crate::serve::tasks;
use crate::serve::tenants::Terms;
use crate::serve::testing::{Act, Bench, FakeVm, request, spec};
use crate::serve::vm::{Hold, Order, Vm};
use crate::spec::{Disk, VmSpec};
use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc;
use worker_api::{FdRole, exit};

/// Who hands files over.
const TENANT: u32 = 4242;

fn terms() -> Terms {
    Terms { owner: TENANT, limit: None }
}

/// A spec with a kernel and a disk, and both of them.
fn files(bench: &Bench, name: &str) -> VmSpec {
    let file = |file: &str, bytes: &[u8]| {
        let path = bench.dir.path().join(format!("{name}-{file}"));
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut spec = spec(name);
    (spec.boot.builtin, spec.boot.kernel) = (None, Some(file("kernel", b"the kernel")));
    let path = file("disk", &[7; 8192]);
    spec.disks = vec![Disk { path, readonly: false, engine: Default::default(), serial: None }];
    spec
}

/// What its owner hands over for a spec.
async fn handed(bench: &Bench, spec: &VmSpec) -> Received {
    let files = crate::guestfile::of(spec);
    let open = |file: &crate::guestfile::GuestFile| File::open(&file.path).unwrap().into();
    bench.handed(TENANT, files.iter().map(|file| (file.field.as_str(), open(file))).collect()).await
}

async fn order(bench: &Bench, spec: &VmSpec) -> Order {
    Order { request: request(spec.clone()), files: Some(handed(bench, spec).await) }
}

/// Starts a VM with files of its owner's.
async fn start(bench: &Bench, spec: &VmSpec) -> Result<Arc<Vm>, ApiError> {
    let order = order(bench, spec).await;
    let op = tasks::begin(&bench.context, OperationKind::Create, &spec.name, TENANT);
    tasks::create(&bench.context, order, terms(), op).await
}

async fn ended(fake: FakeVm, vm: &Vm) {
    fake.exit(exit::SHUTDOWN);
    vm.until_ended().await;
}

fn used(bench: &Bench) -> u64 {
    bench.context.tenants.used(TENANT).disk_bytes
}

#[tokio::test]
async fn a_vm_finds_its_files_again_without_its_owner() {
    let bench = Bench::new();
    let spec = files(&bench, "a");
    let vm = start(&bench, &spec).await.unwrap();
    let fake = bench.started().await;
    let mut kernel = [0; 10];
    rustix::io::pread(fake.fd(FdRole::Kernel), &mut kernel, 0).unwrap();
    assert_eq!(&kernel, b"the kernel");
    // The guest writes to the copy, and its owner's file stays as it was.
    rustix::io::pwrite(fake.fd(FdRole::Disk(0)), b"written", 0).unwrap();
    ended(fake, &vm).await;
    assert_eq!(std::fs::read(&spec.disks[0].path).unwrap(), [7; 8192]);
    assert_eq!((bench.images().len(), used(&bench)), (2, 8202));
    std::fs::remove_file(&spec.disks[0].path).unwrap();
    std::fs::remove_file(spec.boot.kernel.as_ref().unwrap()).unwrap();
    let op = tasks::begin(&bench.context, OperationKind::Start, "a", TENANT);
    tasks::start(&bench.context, &vm, &None, op).await.unwrap();
    let fake = bench.started().await;
    let mut disk = [0; 7];
    rustix::io::pread(fake.fd(FdRole::Disk(0)), &mut disk, 0).unwrap();
    assert_eq!(&disk, b"written");
    ended(fake, &vm).await;
    vm.remove(&bench.context).await.unwrap();
    assert_eq!((bench.images(), used(&bench)), (vec![], 0));
}

#[tokio::test]
async fn an_import_is_an_operation_and_files_are_private() {
    let bench = Bench::new();
    let vm = start(&bench, &files(&bench, "a")).await.unwrap();
    let operations = bench.context.operations.list();
    let import = operations.iter().find(|op| op.kind == OperationKind::Import).unwrap();
    assert_eq!((import.state, import.owner, import.vm.as_str()), (OperationState::Done, TENANT, "a"));
    let images = bench.dir.path().join("images");
    for name in bench.images() {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(images.join(&name)), 0o600);
        assert_eq!(mode(images.join(vm.id())), 0o700);
    }
    ended(bench.started().await, &vm).await;
}

#[tokio::test]
async fn a_vm_that_is_forgotten_at_its_end_uses_the_files_as_they_are() {
    let bench = Bench::new();
    let spec = files(&bench, "a");
    let disk = File::options().read(true).write(true).open(&spec.disks[0].path).unwrap();
    let kernel = File::open(spec.boot.kernel.as_ref().unwrap()).unwrap();
    let files = bench.handed(TENANT, vec![("boot.kernel", kernel.into()), ("disks[0].path", disk.into())]).await;
    let request = CreateRequest { remove_when_ended: true, ..request(spec.clone()) };
    let starting = Vm::create(&bench.context, Order { request, files: Some(files) }, terms()).unwrap();
    let vm = starting.until_running().await.unwrap();
    let fake = bench.started().await;
    rustix::io::pwrite(fake.fd(FdRole::Disk(0)), b"written", 0).unwrap();
    assert_eq!((bench.images(), used(&bench)), (vec![], 0));
    ended(fake, &vm).await;
    assert_eq!(&std::fs::read(&spec.disks[0].path).unwrap()[..7], b"written");
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_files() {
    let bench = Bench::new();
    let spec = files(&bench, "a");
    bench.acts(Act::Refused(jail_spec::Refusal::Full { slots: 1 }));
    start(&bench, &spec).await.unwrap_err();
    assert_eq!((bench.images(), used(&bench)), (vec![], 0));
    // Nor where a file cannot be used, and the one before it could.
    bench.acts(Act::Good);
    std::fs::write(&spec.disks[0].path, "tiny").unwrap();
    let error = start(&bench, &spec).await.unwrap_err();
    assert_eq!(error.field.as_deref(), Some("disks[0].path"));
    assert_eq!((bench.images(), used(&bench)), (vec![], 0));
    std::fs::write(&spec.disks[0].path, [1; 512]).unwrap();
    let vm = start(&bench, &spec).await.unwrap();
    ended(bench.started().await, &vm).await;
}

#[tokio::test]
async fn an_import_that_is_cancelled_leaves_nothing_and_the_name_is_free() {
    let bench = Bench::new();
    let spec = files(&bench, "a");
    // It waits for a thread: all that its owner has copy something else.
    let share = bench.context.side.share(TENANT);
    let hold: Vec<_> = (0..2)
        .map(|_| {
            let (release, held) = mpsc::channel::<()>();
            let share = share.clone();
            let held = std::sync::Mutex::new(held);
            (release, tokio::spawn(async move { share.run(Task::Copy, move || held.lock().unwrap().recv()).await }))
        })
        .collect();
    while share.free_copies() > 0 {
        tokio::task::yield_now().await;
    }
    for by in [OperationKind::Import, OperationKind::Create] {
        let order = order(&bench, &spec).await;
        let op = tasks::begin(&bench.context, OperationKind::Create, "a", TENANT);
        let (context, created) = (bench.context.clone(), op.id());
        let task = tokio::spawn(async move { tasks::create(&context, order, terms(), op).await.map(drop) });
        let under_way = || {
            let all = bench.context.operations.list();
            all.iter()
                .find(|op| op.kind == OperationKind::Import && op.state == OperationState::Running)
                .map(|op| op.id)
        };
        while under_way().is_none() || used(&bench) == 0 {
            tokio::task::yield_now().await;
        }
        let cancelled = if by == OperationKind::Import { under_way().unwrap() } else { created };
        assert!(bench.context.operations.cancel(cancelled));
        task.await.unwrap().unwrap_err();
        assert_eq!((bench.images(), under_way()), (vec![], None));
        assert!(bench.context.registry.list().is_empty(), "{by:?}");
    }
    for (release, held) in hold {
        drop(release);
        held.await.unwrap().unwrap().unwrap_err();
    }
    while used(&bench) > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.images(), [""; 0]);
    let vm = start(&bench, &spec).await.unwrap();
    ended(bench.started().await, &vm).await;
}

#[tokio::test]
async fn a_file_is_imported_once_for_each_path() {
    let bench = Bench::new();
    let mut spec = files(&bench, "a");
    let vm = start(&bench, &spec).await.unwrap();
    let fake = bench.started().await;
    rustix::io::pwrite(fake.fd(FdRole::Disk(0)), b"written", 0).unwrap();
    ended(fake, &vm).await;
    let before = bench.images();
    // The owner's file is another one by now; the path is the same, and so is the VM's disk. The kernel is another one.
    std::fs::write(&spec.disks[0].path, [9; 512]).unwrap();
    let kernel = bench.dir.path().join("new");
    std::fs::write(&kernel, "a newer kernel").unwrap();
    spec.boot.kernel = Some(kernel.to_str().unwrap().into());
    let again = start(&bench, &spec).await.unwrap();
    assert_eq!(again.id(), vm.id());
    let fake = bench.started().await;
    let (mut disk, mut kernel) = ([0; 7], [0; 14]);
    rustix::io::pread(fake.fd(FdRole::Disk(0)), &mut disk, 0).unwrap();
    rustix::io::pread(fake.fd(FdRole::Kernel), &mut kernel, 0).unwrap();
    assert_eq!((&disk, &kernel), (b"written", b"a newer kernel"));
    let after = bench.images();
    assert_eq!(after.iter().filter(|file| before.contains(file)).count(), 1, "the old kernel is gone: {after:?}");
    assert_eq!((after.len(), used(&bench)), (2, 8192 + 14));
    ended(fake, &again).await;
}

#[tokio::test]
async fn a_new_file_that_fails_leaves_the_old_one() {
    let bench = Bench::new();
    let spec = files(&bench, "a");
    let vm = start(&bench, &spec).await.unwrap();
    ended(bench.started().await, &vm).await;
    let before = bench.images();
    let mut other = files(&bench, "b");
    other.name = "a".into();
    bench.acts(Act::Refused(jail_spec::Refusal::Full { slots: 1 }));
    start(&bench, &other).await.unwrap_err();
    assert_eq!((bench.images(), used(&bench), vm.intent().spec.clone()), (before, 8202, spec));
}

#[tokio::test]
async fn an_update_imports_before_it_stops_anything() {
    let bench = Bench::new();
    let spec = files(&bench, "a");
    let vm = start(&bench, &spec).await.unwrap();
    let fake = bench.started().await;
    let hold = Hold::new(&bench.context, vm.clone());
    let mut other = spec.clone();
    other.boot.kernel = Some(bench.dir.path().join("b-kernel").to_str().unwrap().into());
    std::fs::write(other.boot.kernel.as_ref().unwrap(), "").unwrap();
    let update = |spec: &VmSpec| UpdateRequest {
        spec: spec.clone(),
        source: None,
        if_generation: None,
        deadline_s: 600,
        files: None,
    };
    let begin = || tasks::begin(&bench.context, OperationKind::Update, "a", TENANT);
    // An empty kernel.
    let files = handed(&bench, &other).await;
    let error = tasks::update(&bench.context, &hold, update(&other), Some(files), &None, begin()).await.unwrap_err();
    assert_eq!((error.field.as_deref(), vm.summary().state), (Some("boot.kernel"), VmState::Running));
    assert_eq!((bench.images().len(), used(&bench)), (2, 8202));
    // Not a kernel that was never handed over.
    let error = tasks::update(&bench.context, &hold, update(&other), None, &None, begin()).await.unwrap_err();
    assert!(error.message.contains("opens no file by its path"), "{error:?}");
    std::fs::write(other.boot.kernel.as_ref().unwrap(), "the kernel of b").unwrap();
    let files = handed(&bench, &other).await;
    let context = bench.context.clone();
    let (asked, op) = (update(&other), begin());
    let task = tokio::spawn(async move { tasks::update(&context, &hold, asked, Some(files), &None, op).await });
    while vm.summary().state != VmState::Stopping {
        tokio::task::yield_now().await;
    }
    fake.exit(exit::SHUTDOWN);
    assert_eq!(task.await.unwrap().unwrap(), UpdateDone::Restarted);
    let fake = bench.started().await;
    let mut kernel = [0; 15];
    rustix::io::pread(fake.fd(FdRole::Kernel), &mut kernel, 0).unwrap();
    assert_eq!((&kernel, bench.images().len(), used(&bench)), (b"the kernel of b", 2, 8192 + 15));
    ended(fake, &vm).await;
}

#[tokio::test]
async fn what_a_dead_supervisor_left_goes_unless_its_vms_were_lost() {
    let bench = Bench::new();
    let spec = files(&bench, "a");
    let vm = start(&bench, &spec).await.unwrap();
    ended(bench.started().await, &vm).await;
    let (images, kept) = (bench.dir.path().join("images"), bench.images());
    let stray = images.join("00000000000000aa");
    std::fs::create_dir(&stray).unwrap();
    std::fs::write(stray.join("disk-0.part"), "half").unwrap();
    std::fs::write(images.join(vm.id()).join("disk-1.part"), "half").unwrap();
    std::fs::write(images.join("README"), "not ours").unwrap();
    let storage = Arc::new(Storage::for_tests(&images));
    let tenants = Tenants::of_one(1);
    storage.charge_all(&tenants, &[vm.intent()]);
    assert_eq!(tenants.used(TENANT).disk_bytes, 8206, "before anything is removed");
    storage.clean(&tenants, vec![vm.intent()], false).await;
    assert!(stray.exists() && storage.has(0xaa));
    storage.clean(&tenants, vec![vm.intent()], true).await;
    assert!(!stray.exists() && images.join("README").exists() && !storage.has(0xaa));
    std::fs::remove_file(images.join("README")).unwrap();
    assert_eq!((bench.images(), tenants.used(TENANT).disk_bytes), (kept, 8202));
}

#[tokio::test]
async fn files_that_somebody_is_about_to_use_stay() {
    let bench = Bench::new();
    let spec = files(&bench, "a");
    let vm = start(&bench, &spec).await.unwrap();
    ended(bench.started().await, &vm).await;
    let mut intent = Intent::clone(&vm.intent());
    intent.spec.disks.clear();
    let storage = &bench.context.storage;
    let busy = storage.busy(intent.number);
    storage.tidy(&bench.context.tenants, &intent).await;
    assert_eq!(bench.images().len(), 2);
    drop(busy);
    storage.tidy(&bench.context.tenants, &intent).await;
    assert_eq!((bench.images().len(), used(&bench)), (1, 10));
}
